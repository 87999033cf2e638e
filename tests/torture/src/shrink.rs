//! Cutting a program that fails down to the steps that it needs to fail, by leaving out ever smaller
//! pieces (delta debugging), in bounded time.

use std::time::{Duration, Instant};

/// Leaves out of `program` all that `fails` does not need, as far as there is time. The program must fail.
pub fn shrink(
    mut program: Vec<String>,
    patience: Duration,
    mut fails: impl FnMut(&[String]) -> bool,
) -> Vec<String> {
    let since = Instant::now();
    // First whole epochs without their snapshots: most of the time goes there.
    let last = program.len().saturating_sub(1);
    let few: Vec<String> = keep_some_checks(&program, last);
    if few.len() < program.len() && fails(&few) {
        program = few;
    }
    let mut piece = program.len().div_ceil(2);
    while piece > 0 {
        let before = program.len();
        let mut at = 0;
        while at < program.len() {
            if since.elapsed() > patience {
                return program;
            }
            let end = (at + piece).min(program.len());
            let less = [&program[..at], &program[end..]].concat();
            if fails(&less) {
                program = less
            } else {
                at = end
            }
        }
        // The last pieces are tried again while that helps.
        piece = match piece {
            1 if program.len() < before => 1,
            _ => piece / 2,
        };
    }
    program
}

/// Of the checks all but the first and the last go.
fn keep_some_checks(program: &[String], last: usize) -> Vec<String> {
    let is_check = |line: &String| line.starts_with("!check");
    let first = program.iter().position(is_check).unwrap_or(0);
    let before_last = program[..last].iter().rposition(is_check).unwrap_or(0);
    let keeps = |(number, line): (usize, &String)| {
        (!is_check(line) || number == first || number == before_last || number == last)
            .then(|| line.clone())
    };
    program.iter().enumerate().filter_map(keeps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_goes() {
        let program: Vec<String> = (0..500).map(|number| format!("read {number}")).collect();
        let needed = ["read 7", "read 250", "read 251", "read 499"];
        let fails = |less: &[String]| {
            needed
                .iter()
                .all(|line| less.iter().any(|other| other == line))
        };
        assert_eq!(shrink(program, Duration::from_secs(60), fails), needed);
    }
}

//! A program as text, one step a line, so that it can be saved, cut down and replayed.
//!
//! A line is an operation of the target (`tests/targets/adversary.c`; with `@K ` in front, of its child
//! K), or, with `!` in front, something the driver does:
//!
//! | step | what is done |
//! |---|---|
//! | `!check MODE WHEN STOP` | a snapshot of the stopped target, compared with it. MODE `auto` `stop` `precopy` `full`; the truth is read `before` or `after` it; STOP `signal` or `leave` (`--leave stopped`) |
//! | `!during MODE` | the last 20 operations are done over and over while a snapshot is taken, which leaves the target stopped and is compared with it |
//! | `!begin MODE` ... `!end` | a snapshot is taken while the operations between run |
//! | `!every MS` ... `!end` | the same, one after the other |
//! | `!kill MOMENT` | a checkpoint is killed so many times 50 microseconds after it began to write |
//! | `!rollback N` | back to the Nth newest snapshot that was compared |
//! | `!detach`, `!store` | tracking is taken away; a new store |
//! | `!poke PAGE SEED`, `!mem PAGE SEED`, `!vm PAGE SEED` | a store by ptrace, by `/proc/PID/mem`, by process_vm_writev(2) |
//! | `!prepared FILE PAGE SEED`, `!age` | a file behind private mappings is written to; time passes until files count as old |
//! | `!swap on`, `!swap off`, `!merge on`, `!huge N`, `!compact`, `!drop_caches` | settings of the machine |

/// What a line does, in a word or two: what operations are counted by.
pub fn kind(line: &str) -> String {
    let (prefix, line) = match line.strip_prefix('@') {
        Some(rest) => ("@", rest.split_once(' ').map_or("", |(_, line)| line)),
        None => ("", line),
    };
    let mut words = line.split(' ');
    let verb = words.next().unwrap_or("");
    let is_word = |word: &&str| word.starts_with(|c: char| c.is_ascii_alphabetic());
    match words.next().filter(is_word) {
        Some(second) => format!("{prefix}{verb} {second}"),
        None => format!("{prefix}{verb}"),
    }
}

/// The lines of a text, without empty ones and those that begin with `#`.
pub fn parse(text: &str) -> Vec<String> {
    let is_step = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines()
        .map(str::trim)
        .filter(is_step)
        .map(str::to_owned)
        .collect()
}

/// True if the driver acts, not the target.
pub fn is_of_driver(line: &str) -> bool {
    line.starts_with('!')
}

/// The numbers among the words of a line, in order.
pub fn numbers(line: &str) -> Vec<u64> {
    line.split(' ')
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// So many operations at most are repeated while a snapshot is taken.
pub const REPEATED: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_the_leading_words() {
        assert_eq!(kind("write 4 1 77 0"), "write");
        assert_eq!(kind("advise cold 4 1"), "advise cold");
        assert_eq!(kind("@2 map anon 1 2 3"), "@map anon");
        assert_eq!(kind("!check auto after signal"), "!check auto");
    }

    #[test]
    fn comments_are_no_steps() {
        assert_eq!(parse("# seed 1\n\nread 1 2\n"), ["read 1 2"]);
    }
}

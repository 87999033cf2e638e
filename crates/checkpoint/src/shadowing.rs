//! How much memory the pages may take that the last snapshots were written with (see [`pagetide_snapshot::Shadow`]).

use crate::options::Options;
use pagetide_pages::{PageCount, PageSize};
use pagetide_snapshot::Shadow;

/// What it may take if nothing else is said: this part of the memory that the processes have, but no more than the other.
const PART: u64 = 16;
const MOST_BYTES: u64 = 1 << 30;

/// Gives whoever takes snapshot after snapshot a shadow, unless there is to be none.
pub fn begin(options: &mut Options) {
    let limit = options.shadow_limit.unwrap_or(0);
    if options.write.shadow.is_none() && options.shadow_limit != Some(0) {
        options.write.shadow = Some(Shadow::new(limit));
    }
}

/// Fits the shadow to what these processes have by now, if no limit was given.
pub fn fit(options: &Options, pids: impl Iterator<Item = i32>) {
    let (Some(shadow), None) = (&options.write.shadow, options.shadow_limit) else {
        return;
    };
    let resident: u64 = pids.filter_map(resident_bytes).sum();
    shadow.set_limit((resident / PART).min(MOST_BYTES));
}

/// What a process has in memory, as proc_pid_statm(5) tells it. `None` if it has ended.
fn resident_bytes(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(PageSize::KIB_4.bytes_of(PageCount(pages)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_follows_what_is_resident() {
        let mut options = Options::default();
        begin(&mut options);
        let own = i32::try_from(std::process::id()).unwrap();
        fit(&options, [own].into_iter());
        let shadow = options.write.shadow.clone().unwrap();
        let text = format!("{shadow:?}");
        let limit = text.split("limit: ").nth(1).unwrap();
        let limit: u64 = limit.split(',').next().unwrap().parse().unwrap();
        assert!((1 << 15..1 << 30).contains(&limit), "{text}");
        fit(&options, [0].into_iter());
        assert!(format!("{shadow:?}").contains("limit: 0,"));
    }

    #[test]
    fn a_limit_of_nothing_is_no_shadow() {
        let mut options = Options {
            shadow_limit: Some(0),
            ..Options::default()
        };
        begin(&mut options);
        assert_eq!(options.write.shadow, None);
        options.shadow_limit = Some(5 << 20);
        begin(&mut options);
        fit(&options, [0].into_iter());
        let shadow = options.write.shadow.unwrap();
        assert!(format!("{shadow:?}").contains(&format!("limit: {},", 5 << 20)));
    }
}

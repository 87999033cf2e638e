//! Whatever hangs, nobody is held: a thread that sees when a process stands still by us and nothing comes of it any more, as
//! when a file system that we asked never answers, lets everybody go, and ends this program.
//!
//! Nothing less would do: a call that waits in the kernel cannot be called off by another thread. And the end alone would not
//! do either: the kernel closes what is open before it takes processes out of tracing, and closing may be what waits. What
//! an end at any moment leaves behind is what kill -9 does: the next snapshot is full.

use crate::job_control;
use crate::output;
use crate::signals::Signals;
use pagetide_kernel::progress;
use pagetide_process::StoppedProcess;
use std::time::Duration;

/// So often it looks. Its own looks are counted, not time: it may have been stopped itself.
const LOOK: Duration = Duration::from_millis(50);
/// So long after a signal nothing may come of the work under way.
const AFTER_SIGNAL: Duration = Duration::from_secs(1);
/// The same if nobody stands still.
const AFTER_SIGNAL_ALONE: Duration = Duration::from_secs(2);

/// The kernel counts the work of programs in ticks, of which a second has this many: `USER_HZ`.
const TICKS_A_SECOND: u64 = 100;

/// Starts it. `patience`: how long a process may stand still while nothing moves. `ends_on_signal`: this program ends when a
/// signal comes, and waits for nobody.
pub fn start(patience: Duration, signals: &Signals, ends_on_signal: bool) -> std::io::Result<()> {
    job_control::stop_only_while_none_stands()?;
    let signals = signals.clone();
    let looks = |time: Duration| (time.as_micros() / LOOK.as_micros()).max(2);
    let watch = move || {
        let (mut steps, mut idle, mut worked) = (progress::steps(), 0, 0);
        loop {
            std::thread::sleep(LOOK);
            let now = progress::steps();
            let (stands, signalled) = (StoppedProcess::any(), signals.came());
            if now != steps || !(stands || signalled && ends_on_signal) {
                (steps, idle) = (now, 0);
                continue;
            }
            if idle == 0 {
                worked = ticks();
            }
            idle += 1;
            let allowed = match (stands, signalled) {
                (true, true) => looks(AFTER_SIGNAL).min(looks(patience)),
                (true, false) => looks(patience),
                (false, _) => looks(AFTER_SIGNAL_ALONE),
            };
            // A long call of the kernel's, or a long piece of our own, works all the time; what waits does not.
            let busy_ticks = allowed as u64 * TICKS_A_SECOND * LOOK.as_millis() as u64 / 1000 / 50;
            if idle >= allowed && ticks() < worked + busy_ticks.max(2) {
                give_up(patience, &signals);
            }
            if idle >= allowed {
                idle = 0;
            }
        }
    };
    std::thread::Builder::new()
        .name("pagetide-watch".to_owned())
        .spawn(watch)
        .map(drop)
}

/// How long this program has worked, all its threads: fields 14 and 15 of `proc_pid_stat(5)`.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let numbers = rest.split_whitespace().skip(11).take(2);
    numbers
        .filter_map(|number| number.parse::<u64>().ok())
        .sum()
}

fn give_up(patience: Duration, signals: &Signals) -> ! {
    StoppedProcess::let_all_go(LOOK * 10);
    let status = signals.exit_status();
    match status {
        Some(_) => output::note!(
            "pagetide: interrupted, and what was under way does not end: the process is let go"
        ),
        None => output::note!(
            "pagetide: nothing has moved for {} while the process stood still (a file system or a disk does not answer): it \
             is let go, and there is no snapshot",
            output::duration(patience)
        ),
    }
    signal_hook::low_level::exit(i32::from(status.unwrap_or(1)))
}

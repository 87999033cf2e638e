//! The table of figures, and the arithmetic of its cells.

use crate::target;
use comfy_table::{Table, presets};
use std::time::Duration;

/// One line of the table.
pub struct Row {
    pub what: &'static str,
    pub ours: String,
    pub limit: String,
    pub ratio: Option<f64>,
    pub bar: &'static str,
}

/// Prints the table.
pub fn print(rows: Vec<Row>) {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    println!(
        "kernel {release}, {} cores, {} MiB resident\n",
        cores(),
        target::MIB
    );
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(["what", "pagetide", "limit", "ratio", "bar"]);
    for row in rows {
        let ratio = row
            .ratio
            .map_or(String::new(), |ratio| format!("{ratio:.3}"));
        table.add_row([row.what, &row.ours, &row.limit, &ratio, row.bar]);
    }
    println!("{table}");
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

pub fn ratio(ours: Duration, limit: Duration) -> Option<f64> {
    (limit > Duration::ZERO).then(|| ours.as_secs_f64() / limit.as_secs_f64())
}

pub fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

pub fn rate(bytes: u64, time: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / time.as_secs_f64())
}

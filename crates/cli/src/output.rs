//! Data to stdout: JSON for machines, tables for people. Progress to stderr, on a terminal only.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Prints one JSON object on a line of its own.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    text(&line)
}

/// Prints text as it is.
pub fn text(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// A table without frames; the columns named in `right` are aligned to the right.
pub fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for &column in right {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        // The padding of the outermost columns.
        text.push_str(line.strip_prefix(' ').unwrap_or(line).trim_end());
        text.push('\n');
    }
    text
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// A duration for people: the unit fits the size.
pub fn duration(duration: Duration) -> String {
    match duration.as_micros() {
        0..1000 => format!("{} us", duration.as_micros()),
        1000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// Microseconds for machines.
pub fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A progress bar over bytes on stderr, hidden unless that is a terminal.
pub fn progress(what: &'static str) -> indicatif::ProgressBar {
    if !io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new(0);
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = indicatif::ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.with_message(what)
}

/// A moment in UTC, as `2026-01-31T12:00:00Z`.
pub fn utc(unix_ns: u64) -> String {
    let moment = std::time::UNIX_EPOCH + Duration::from_nanos(unix_ns);
    humantime::format_rfc3339_seconds(moment).to_string()
}

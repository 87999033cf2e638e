//! Data to stdout: JSON for machines, tables for people. Progress to stderr, on a terminal only.

use crate::shown;
use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::ser::Formatter;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Prints one JSON object on a line of its own.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    write(&json_line(value)?)
}

/// One JSON object on a line of its own.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut line = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut line, Plain,
    ))?;
    line.push(b'\n');
    Ok(line)
}

/// JSON with the same values as ever, in which characters that could deceive a reader are escaped.
struct Plain;

impl Formatter for Plain {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        let mut units = [0; 2];
        for piece in fragment.split_inclusive(shown::is_deceiving) {
            let last = piece
                .chars()
                .next_back()
                .filter(|last| shown::is_deceiving(*last));
            let kept = piece.len() - last.map_or(0, char::len_utf8);
            writer.write_all(&piece.as_bytes()[..kept])?;
            for unit in last.map_or(&[][..], |last| last.encode_utf16(&mut units)) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// Prints text of our own, as it is: a script, a manual.
pub fn script(text: &[u8]) -> anyhow::Result<()> {
    write(text)
}

/// What is told on stderr is for machines, too.
static FOR_MACHINES: AtomicBool = AtomicBool::new(false);

/// From now on notes and errors on stderr are JSON, one object a line.
pub fn notes_for_machines() {
    FOR_MACHINES.store(true, Ordering::Relaxed);
}

/// True if they are.
pub fn is_for_machines() -> bool {
    FOR_MACHINES.load(Ordering::Relaxed)
}

/// What people, or machines, have to know.
#[derive(Serialize)]
struct Note<'a> {
    time: String,
    note: &'a str,
}

/// Prints one line on stderr. If nobody takes it, nobody is told.
pub fn note_line(line: &str) {
    if is_for_machines() {
        let note = line.strip_prefix("pagetide: ").unwrap_or(line).trim_start();
        let time = now();
        return json_note(&Note { time, note });
    }
    let _ = writeln!(io::stderr(), "{}", shown::line(line));
}

/// Prints one JSON object on a line of stderr.
pub fn json_note(value: &impl Serialize) {
    if let Ok(line) = json_line(value) {
        let _ = io::stderr().write_all(&line);
    }
}

/// As `note_line`, with the words of `format!`.
macro_rules! note {
    ($($words:tt)*) => { $crate::output::note_line(&format!($($words)*)) };
}
pub(crate) use note;

fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.context("cannot write to standard output")
}

/// Lines for people. What is in a line, or in a cell of a table, cannot become another line, whoever chose it.
#[derive(Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more line.
    pub fn line(&mut self, line: impl AsRef<str>) -> &mut Self {
        self.text.push_str(&shown::line(line.as_ref()));
        self.text.push('\n');
        self
    }

    /// One more line that is a path.
    pub fn path(&mut self, path: &Path) -> &mut Self {
        self.text.push_str(&shown::path(path));
        self.text.push('\n');
        self
    }

    /// A table without frames; the columns named in `right` are aligned to the right.
    pub fn table(&mut self, header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> &mut Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        for row in rows {
            table.add_row(row.iter().map(|cell| shown::line(cell)));
        }
        for &column in right {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in table.to_string().lines() {
            // The padding of the outermost columns.
            let line = line.strip_prefix(' ').unwrap_or(line).trim_end();
            self.text.push_str(&cut(line, terminal_columns()));
            self.text.push('\n');
        }
        self
    }

    /// Prints it on stdout.
    pub fn print(&self) -> anyhow::Result<()> {
        write(self.text.as_bytes())
    }
}

/// How wide the terminal is that stdout is, if it is one.
fn terminal_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// A line of a table as far as there is room for it: what comes last is a name.
fn cut(line: &str, columns: Option<usize>) -> Cow<'_, str> {
    match columns {
        Some(columns) if line.chars().count() > columns => {
            let kept: String = line.chars().take(columns.saturating_sub(1)).collect();
            Cow::Owned(kept + "…")
        }
        _ => Cow::Borrowed(line),
    }
}

/// Prints one line for people on stdout.
pub fn line(line: impl AsRef<str>) -> anyhow::Result<()> {
    Page::new().line(line).print()
}

/// A number of bytes for people.
pub fn bytes(count: u64) -> String {
    indicatif::HumanBytes(count).to_string()
}

/// So many of something.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
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

/// Now, in UTC, as `2026-01-31T12:00:00.123Z`.
pub fn now() -> String {
    humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string()
}

/// A moment in UTC, as `2026-01-31T12:00:00Z`.
pub fn utc(unix_ns: u64) -> String {
    let moment = std::time::UNIX_EPOCH + Duration::from_nanos(unix_ns);
    humantime::format_rfc3339_seconds(moment).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_exact_and_plain() {
        let text = "a\"\\\n\x1b\u{7f}\u{9b}\u{202e}é\u{e0041}世";
        let mut line = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut line, Plain);
        text.serialize(&mut serializer).expect("it is text");
        let line = String::from_utf8(line).expect("it is text");
        assert!(!line.chars().any(shown::is_deceiving), "{line}");
        let again: String = serde_json::from_str(&line).expect("it is JSON");
        assert_eq!(again, text);
    }

    #[test]
    fn what_does_not_fit_is_cut_at_the_end() {
        assert_eq!(cut("grüße aus", Some(9)), "grüße aus");
        assert_eq!(cut("grüße aus", Some(8)), "grüße a…");
        assert_eq!(cut("grüße aus", None), "grüße aus");
    }

    #[test]
    fn a_cell_is_no_line() {
        let mut page = Page::new();
        page.table(&["a", "b"], &[], vec![vec!["x\ny".into(), "z\x1b".into()]]);
        page.line("one\ntwo");
        assert_eq!(page.text.lines().count(), 3, "{}", page.text);
    }
}

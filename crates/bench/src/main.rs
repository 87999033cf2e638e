//! `make bench`: pagetide beside the bare kernel operations under it, as ratios of medians taken in turn
//! in one run. Machines differ and drift; absolute figures are printed for orientation only.

mod embed;
mod limits;
mod mappings;
mod neighbours;
mod restore;
mod scan;
mod sparse;
mod target;
mod throughput;
mod window;

use comfy_table::{Table, presets};
use std::time::Duration;

/// One line of the table.
struct Row {
    what: &'static str,
    ours: String,
    limit: String,
    ratio: Option<f64>,
    bar: &'static str,
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut rows = Vec::new();
    match arguments.next().as_deref() {
        Some("target") => return target::serve(),
        Some("mappings") => return mappings::serve(),
        Some(size) if size.starts_with("restore-") => {
            return restore::serve(size.trim_start_matches("restore-"));
        }
        Some("neighbours") => return neighbours::measure(),
        Some("peak") => return throughput::serve_peak(arguments),
        Some("restore") => rows.extend(restore::measure()?),
        Some("sparse") => rows.extend(sparse::measure()?),
        Some("embed") => rows.extend(embed::measure()?),
        Some("stops") => {
            rows.extend(window::measure()?);
            rows.extend(mappings::measure()?);
        }
        // cargo bench passes this on.
        None | Some("--bench") => {
            rows.extend(scan::measure()?);
            rows.extend(window::measure()?);
            rows.extend(mappings::measure()?);
            rows.extend(throughput::measure()?);
            rows.extend(sparse::measure()?);
            rows.extend(restore::measure()?);
            rows.extend(embed::measure()?);
        }
        Some(other) => {
            anyhow::bail!(
                "{other} is not known: run without arguments, `restore`, `stops`, `sparse`, `embed` or `neighbours`"
            )
        }
    }

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
    Ok(())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ratio(ours: Duration, limit: Duration) -> Option<f64> {
    (limit > Duration::ZERO).then(|| ours.as_secs_f64() / limit.as_secs_f64())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

fn rate(bytes: u64, time: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / 1e6 / time.as_secs_f64())
}

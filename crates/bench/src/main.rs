//! `make bench`: pagetide beside the bare kernel operations under it, as ratios of medians taken in turn
//! in one run. Machines differ and drift; absolute figures are printed for orientation only.

mod embed;
mod limits;
mod mappings;
mod neighbours;
mod report;
mod restore;
mod scan;
mod sparse;
mod target;
mod throughput;
mod window;

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
    report::print(rows);
    Ok(())
}

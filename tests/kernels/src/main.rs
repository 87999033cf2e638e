//! Runs the tests of this project under the kernel of this machine and under two of Debian's in emulated
//! machines (`tests/kernels/guest`), and prints one table: kernel, backend, test.
//!
//! `plan.txt` says what is run where, `skips.txt` what may be skipped. It fails if a test fails, is
//! skipped without being listed, or is not found; and if a kernel offers other backends than planned.
//!
//! Usage: `cargo run -p pagetide-kernels [-- KERNEL...]`: all kernels, or those that are named.

mod artifacts;
mod kernels;
mod machine;
mod plan;
mod report;
mod results;
mod skips;
mod table;

use anyhow::{Context, Result, bail};
use kernels::KERNELS;
use plan::Plan;
use skips::Skips;
use std::path::Path;
use std::process::ExitCode;
use table::Table;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kernels: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| !KERNELS.contains(&name.as_str())) {
        bail!(
            "no such kernel: {unknown} (there are {})",
            KERNELS.join(", ")
        );
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| {
        std::fs::read_to_string(here.join(name)).with_context(|| format!("read {name}"))
    };
    let mut plan = Plan::parse(&read("plan.txt")?).context("plan.txt")?;
    let skips = Skips::parse(&read("skips.txt")?).context("skips.txt")?;
    let built = artifacts::build(&mut plan)?;

    let mut table = Table::default();
    let mut complaints = Vec::new();
    for kernel in KERNELS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == kernel) {
            continue;
        }
        let report = machine::run(kernel, &plan, &built)?;
        complaints.extend(plan.complaint_about_backends(kernel, &report.backends));
        for job in &report.jobs {
            complaints.extend(job.complaints(kernel, &skips));
        }
        table.add(kernel, report);
    }
    println!("\n{table}");
    for complaint in &complaints {
        println!("FAILED {complaint}");
    }
    Ok(complaints.is_empty())
}

//! `pagetide probe`: which backend would be used here, and why not the others.

use crate::args::Probe as Options;
use crate::output::{self, Page};
use pagetide_kernel::probe::Probe;
use pagetide_process::page_sources;
use serde::Serialize;

#[derive(Serialize)]
struct Answer {
    kernel: String,
    backends: Vec<BackendAnswer>,
    default: Option<&'static str>,
    pagemap_scan: bool,
    scan_categories: Vec<String>,
    /// What `pagetide pages` can tell besides, and why not.
    pages: Vec<SourceAnswer>,
}

#[derive(Serialize)]
struct SourceAnswer {
    what: &'static str,
    usable: bool,
    reason: Option<String>,
}

#[derive(Serialize)]
struct BackendAnswer {
    name: &'static str,
    usable: bool,
    reason: Option<String>,
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    let probe = Probe::of_this_kernel();
    let backends = pagetide::backends(&probe);
    let default = backends.iter().find(|(_, usable)| usable.is_ok());
    let answer = Answer {
        default: default.map(|(backend, _)| backend.name()),
        backends: backends
            .into_iter()
            .map(|(backend, usable)| BackendAnswer {
                name: backend.name(),
                usable: usable.is_ok(),
                reason: usable.err(),
            })
            .collect(),
        pages: page_sources()
            .into_iter()
            .map(|(what, told)| SourceAnswer {
                what,
                usable: told.is_ok(),
                reason: told.err(),
            })
            .collect(),
        kernel: probe.kernel,
        pagemap_scan: probe.pagemap_scan,
        scan_categories: probe
            .categories
            .iter_names()
            .map(|(name, _)| name.to_ascii_lowercase())
            .collect(),
    };
    if options.json {
        return output::json(&answer);
    }
    let row = |backend: &BackendAnswer| {
        let usable = if backend.usable { "yes" } else { "no" };
        let reason = backend.reason.clone().unwrap_or_default();
        vec![backend.name.to_owned(), usable.to_owned(), reason]
    };
    let rows = answer.backends.iter().map(row).collect();
    let mut page = Page::new();
    page.line(format!("kernel {}", answer.kernel)).line("");
    page.table(&["backend", "usable", "why not"], &[], rows);
    if let Some(default) = answer.default {
        page.line("").line(format!("{default} would be used"));
    }
    let categories = match answer.scan_categories.as_slice() {
        [] => "none: this kernel has no PAGEMAP_SCAN (Linux 6.7)".to_owned(),
        known => known.join(", "),
    };
    page.line("");
    page.line(format!(
        "categories of pages that a scan tells: {categories}"
    ));
    page.line("");
    let row = |source: &SourceAnswer| {
        let usable = if source.usable { "yes" } else { "no" };
        let reason = source.reason.clone().unwrap_or_default();
        vec![source.what.to_owned(), usable.to_owned(), reason]
    };
    let rows = answer.pages.iter().map(row).collect();
    page.table(&["of pages", "told", "why not"], &[], rows);
    page.print()
}

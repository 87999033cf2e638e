//! `pagetide completions` and `pagetide man`: for packagers.

use crate::args::{Arguments, Completions, Man};
use crate::output;
use anyhow::Context;
use std::path::Path;

pub fn completions(options: &Completions) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut Arguments::documented(),
        "pagetide",
        &mut script,
    );
    output::script(&script)
}

pub fn man(options: &Man) -> anyhow::Result<()> {
    match &options.directory {
        Some(directory) => pages_into(directory),
        None => one_page(),
    }
}

/// The program, then a section for each command.
fn one_page() -> anyhow::Result<()> {
    let mut command = Arguments::documented();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands() {
        let man = clap_mangen::Man::new(subcommand.clone());
        man.render_synopsis_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    output::script(&page)
}

/// `pagetide.1`, and `pagetide-COMMAND.1` for each command.
fn pages_into(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::documented(), directory))
        .with_context(|| format!("write manual pages to {}", directory.display()))
}

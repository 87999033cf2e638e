//! `pagetide completions` and `pagetide man`: for packagers.

use crate::args::{Arguments, Completions};
use crate::output;
use clap::CommandFactory;

pub fn completions(options: &Completions) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut Arguments::command(),
        "pagetide",
        &mut script,
    );
    output::script(&script)
}

/// One page: the program, then a section for each command.
pub fn man() -> anyhow::Result<()> {
    let mut command = Arguments::command();
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

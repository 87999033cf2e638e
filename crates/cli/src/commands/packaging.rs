//! `pagetide completions` and `pagetide man`: for packagers.

use crate::args::{Arguments, Completions, Man};
use crate::output;
use anyhow::Context;
use std::path::Path;

pub fn completions(options: &Completions) -> anyhow::Result<()> {
    output::script(script(options.shell).as_bytes())
}

/// The script, without what is hidden in the help, which the generators show.
fn script(shell: clap_complete::Shell) -> String {
    let mut command = Arguments::documented();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "pagetide", &mut script);
    let mut script = String::from_utf8_lossy(&script).into_owned();
    for argument in command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
    {
        let Some(name) = argument.get_long().filter(|_| argument.is_hide_set()) else {
            continue;
        };
        if shell == clap_complete::Shell::Bash {
            // All are on one line there; elsewhere each has its own.
            script = script.replace(&format!(" --{name}"), "");
            continue;
        }
        let signs = [format!("--{name}"), format!("-l {name}")];
        let lines = script.split_inclusive('\n');
        let shown = lines.filter(|line| !signs.iter().any(|sign| line.contains(sign)));
        script = shown.collect();
    }
    script
}

pub fn man(options: &Man) -> anyhow::Result<()> {
    match &options.directory {
        Some(directory) => pages_into(directory),
        None => one_page(),
    }
}

/// The program, then a section for each command.
fn one_page() -> anyhow::Result<()> {
    output::script(&all_as_one()?)
}

/// The commands as manual pages have them: `help` has none.
fn of_pages() -> clap::Command {
    Arguments::documented().disable_help_subcommand(true)
}

fn all_as_one() -> std::io::Result<Vec<u8>> {
    let mut command = of_pages();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands() {
        let man = clap_mangen::Man::new(subcommand.clone());
        man.render_synopsis_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    Ok(page)
}

/// `pagetide.1`, and `pagetide-COMMAND.1` for each command.
fn pages_into(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(of_pages(), directory))
        .with_context(|| format!("write manual pages to {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap_complete::Shell;

    /// Prevents a page that names one that does not exist.
    #[test]
    fn each_page_that_is_named_exists() {
        let directory = tempfile::tempdir().expect("a directory");
        pages_into(directory.path()).expect("written");
        let mut pages: Vec<String> = std::fs::read_dir(directory.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| std::fs::read_to_string(path).expect("a page"))
            .collect();
        let count = pages.len();
        pages.push(String::from_utf8(all_as_one().expect("a page")).expect("text"));
        let mut named = 0;
        for page in &pages {
            for line in page.lines().filter_map(|line| line.strip_suffix("(1)")) {
                let file = line.replace("\\-", "-") + ".1";
                assert!(directory.path().join(&file).exists(), "{file}");
                named += 1;
            }
        }
        assert_eq!(named, 2 * (count - 1), "each command, in both forms");
    }

    #[test]
    fn no_completion_shows_what_is_hidden() {
        for shell in [
            Shell::Bash,
            Shell::Zsh,
            Shell::Fish,
            Shell::Elvish,
            Shell::PowerShell,
        ] {
            let script = script(shell);
            assert!(
                script.contains("detach") && !script.contains("behind"),
                "{shell}: {script}"
            );
        }
    }
}

//! All messages of errors, read out of the source into one table, docs/MESSAGES.md: whoever changes one sees them all. It is
//! written anew by `PAGETIDE_WRITE_MESSAGES=1 cargo test -p pagetide-tests --test tidy messages`.

use crate::classes::Classes;
use crate::files::{name_of, parsed, sources, text_of, top};
use std::collections::BTreeMap;
use std::fmt::Write;
use syn::visit::{self, Visit};

const HEAD: &str = "# Messages

What pagetide says when something fails: every error of every crate, in the words of the source, from which this table is made
(`tests/tidy/messages.rs`). `{...}` stands for what it is about. Errors that only pass on another one are left out. The exit status is 3 for what
cannot be done with this process, this store or these rights, and 1 for what failed; that of the causes counts, too. `1 or 3` depends on
the cause. What can be done about it is printed below the message (`crates/cli/src/failure.rs`).
";

/// The messages of one file: of which type and variant, and the words.
#[derive(Default)]
struct Messages {
    of: String,
    found: Vec<(String, String)>,
}

/// The words of `#[error(\"...\")]`.
fn words(attributes: &[syn::Attribute]) -> Option<String> {
    let error = attributes.iter().find(|one| one.path().is_ident("error"))?;
    let tokens = error.meta.require_list().ok()?.tokens.clone();
    let first = tokens.into_iter().next()?.to_string();
    Some(syn::parse_str::<syn::LitStr>(&first).ok()?.value())
}

impl Visit<'_> for Messages {
    fn visit_item_enum(&mut self, item: &syn::ItemEnum) {
        self.of = item.ident.to_string();
        visit::visit_item_enum(self, item);
    }

    fn visit_variant(&mut self, variant: &syn::Variant) {
        if let Some(words) = words(&variant.attrs) {
            self.found
                .push((format!("{}::{}", self.of, variant.ident), words));
        }
    }

    fn visit_item_struct(&mut self, item: &syn::ItemStruct) {
        if let Some(words) = words(&item.attrs) {
            self.found.push((item.ident.to_string(), words));
        }
    }
}

/// The page as the source has it.
fn page() -> String {
    let mut by_crate: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut classes = Classes::default();
    for path in sources("crates") {
        let name = name_of(&path);
        if !name.contains("/src/") || name.contains("/bench/") {
            continue;
        }
        let of = name.split('/').nth(1).unwrap_or_default();
        classes.read(of, &path);
        let mut messages = Messages::default();
        messages.visit_file(&parsed(&path));
        by_crate
            .entry(of.to_owned())
            .or_default()
            .extend(messages.found);
    }
    let mut page = HEAD.to_owned();
    for (name, mut messages) in by_crate {
        messages.sort();
        if messages.is_empty() {
            continue;
        }
        let _ = write!(
            page,
            "\n## {name}\n\n| error | message | exit | what to do |\n|---|---|---|---|\n"
        );
        for (of, words) in messages {
            let words = words.replace('|', "\\|").replace('\n', " ");
            let (status, advice) = (classes.status(&name, &of), classes.advice(&of));
            let _ = writeln!(page, "| `{of}` | {words} | {status} | {advice} |");
        }
    }
    page
}

#[test]
fn messages_are_all_in_one_table() {
    let path = top().join("docs/MESSAGES.md");
    let page = page();
    if std::env::var_os("PAGETIDE_WRITE_MESSAGES").is_some() {
        std::fs::write(&path, &page).expect("write the page");
    }
    assert!(page.lines().count() > 200, "{page}");
    assert!(
        page == text_of(&path),
        "docs/MESSAGES.md is not what the source says; the head of this file says how to write it anew"
    );
}

/// A message begins with no capital letter, and ends with no full stop.
#[test]
fn messages_look_like_messages() {
    let rows = page();
    let rows = rows.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter_map(|line| line.split_once("` | "));
    let wrong: Vec<_> = rows
        .filter_map(|(of, rest)| Some((of, rest.rsplitn(3, " | ").nth(2)?)))
        .filter(|(_, words)| {
            let first = words.chars().next().unwrap_or('.');
            let second = words.chars().nth(1).unwrap_or('.');
            let shouts = first.is_uppercase() && !second.is_uppercase();
            shouts || words.ends_with('.')
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

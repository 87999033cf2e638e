//! The files of a crate as its modules: which there are, and that there are no others.

use crate::files::{name_of, parsed, sources, top};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use syn::Item;

/// The modules of one crate by their paths, `a::b`; the root is the empty path. Modules within a file have that file.
#[derive(Default)]
pub struct Modules {
    pub files: BTreeMap<Vec<String>, PathBuf>,
    /// The items of each module.
    pub items: BTreeMap<Vec<String>, Vec<Item>>,
}

impl Modules {
    /// All that the root declares, and what that declares.
    pub fn of(root: &Path) -> Self {
        let mut modules = Self::default();
        let directory = root.parent().expect("a file lies in a directory");
        modules.add(Vec::new(), root, directory, parsed(root).items);
        modules
    }

    fn add(&mut self, name: Vec<String>, file: &Path, directory: &Path, items: Vec<Item>) {
        for item in &items {
            let Item::Mod(module) = item else { continue };
            let word = module.ident.to_string();
            let name = [&name[..], std::slice::from_ref(&word)].concat();
            let below = directory.join(&word);
            if let Some((_, items)) = &module.content {
                self.add(name, file, &below, items.clone());
                continue;
            }
            let borrowed = module
                .attrs
                .iter()
                .any(|attribute| attribute.path().is_ident("path"));
            let beside = directory.join(format!("{word}.rs"));
            let file = if beside.exists() {
                beside
            } else {
                below.join("mod.rs")
            };
            if !borrowed {
                self.add(name, &file, &below, parsed(&file).items);
            }
        }
        self.files.insert(name.clone(), file.to_owned());
        self.items.insert(name, items);
    }
}

/// The roots of all crates: libraries, programs, and test programs that are directories or files of their own.
fn roots(package: &Path) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["src/lib.rs", "src/main.rs", "build.rs"]
        .iter()
        .map(|name| package.join(name))
        .filter(|path| path.exists())
        .collect();
    for place in ["tests", "examples", "benches", "src/bin"] {
        let Ok(entries) = std::fs::read_dir(package.join(place)) else {
            continue;
        };
        for path in entries.map(|entry| entry.expect("list a directory").path()) {
            match path.is_dir() {
                true if path.join("main.rs").exists() => roots.push(path.join("main.rs")),
                false if path.extension().is_some_and(|end| end == "rs") => roots.push(path),
                _ => {}
            }
        }
    }
    roots
}

/// The directories of packages, and the files of each that Cargo starts from.
pub fn packages() -> Vec<(PathBuf, Vec<PathBuf>)> {
    let crates = std::fs::read_dir(top().join("crates")).expect("list the crates");
    let mut packages: Vec<PathBuf> = crates
        .map(|entry| entry.expect("list the crates").path())
        .collect();
    packages.extend(["tests/torture", "tests/kernels"].map(|name| top().join(name)));
    packages.sort();
    let with_roots = packages.into_iter().map(|package| {
        let roots = roots(&package);
        (package, roots)
    });
    let mut all: Vec<_> = with_roots.collect();
    // As tests/Cargo.toml has it.
    let end_to_end = [
        "harness/lib.rs",
        "it/main.rs",
        "tidy/main.rs",
        "targets/tokio_server.rs",
    ];
    let tests = top().join("tests");
    all.push((
        tests.clone(),
        end_to_end.map(|name| tests.join(name)).to_vec(),
    ));
    all
}

#[test]
fn every_file_belongs_to_a_crate() {
    let mut used: Vec<String> = Vec::new();
    for (_, roots) in packages() {
        for root in roots {
            let modules = Modules::of(&root);
            used.extend(modules.files.values().map(|path| name_of(path)));
        }
    }
    let all = [sources("crates"), sources("tests")].concat();
    let names = all.iter().map(|path| name_of(path));
    let dead: Vec<String> = names.filter(|name| !used.contains(name)).collect();
    assert_eq!(dead, Vec::<String>::new(), "files that nothing declares");
}

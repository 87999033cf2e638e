//! The files of the repository.

use std::path::{Path, PathBuf};

/// The repository.
pub fn top() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests lie in the repository")
}

/// All Rust files below a directory of the repository, in the order of their names.
pub fn sources(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![top().join(directory)];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).expect("list a directory") {
            let path = entry.expect("list a directory").path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("a plain name");
            match path.is_dir() {
                true if name != "target" && !name.starts_with('.') => waiting.push(path),
                false if name.ends_with(".rs") => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// How a file is called in the repository.
pub fn name_of(path: &Path) -> String {
    let path = path.strip_prefix(top()).unwrap_or(path);
    path.to_str().expect("a plain name").to_owned()
}

/// What a file holds.
pub fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The items of a Rust file.
pub fn parsed(path: &Path) -> syn::File {
    syn::parse_file(&text_of(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

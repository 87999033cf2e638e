//! Imports run one way: no file needs one that needs it.

use crate::files::name_of;
use crate::known::Known;
use crate::modules::{Modules, packages};
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use syn::visit::{Visit, visit_item, visit_path};
use syn::{ItemMod, ItemUse, Path, UseTree, Visibility};

/// The paths that a `use` names, each without its last word if that may be no module.
fn paths(tree: &UseTree, before: &[String], found: &mut Vec<Vec<String>>) {
    match tree {
        UseTree::Path(path) => {
            let before = [before, &[path.ident.to_string()]].concat();
            paths(&path.tree, &before, found);
        }
        UseTree::Name(name) => found.push([before, &[name.ident.to_string()]].concat()),
        UseTree::Rename(name) => found.push([before, &[name.ident.to_string()]].concat()),
        UseTree::Glob(_) => found.push(before.to_vec()),
        UseTree::Group(group) => {
            for tree in &group.items {
                paths(tree, before, found);
            }
        }
    }
}

/// The module that a path of `module` leads to, if it is one of this crate.
fn resolved(modules: &Modules, module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut place = match path.first()?.as_str() {
        "crate" => Vec::new(),
        "self" => module.to_vec(),
        "super" => module.split_last()?.1.to_vec(),
        word => {
            let child = [module, &[word.to_owned()]].concat();
            modules.files.contains_key(&child).then_some(child)?
        }
    };
    for word in &path[1..] {
        if word == "super" {
            place.pop()?;
            continue;
        }
        let child = [&place[..], std::slice::from_ref(word)].concat();
        if !modules.files.contains_key(&child) {
            break;
        }
        place = child;
    }
    Some(place)
}

/// The paths that items name anywhere, in `use` lines or in full. Those in macro calls are not seen.
#[derive(Default)]
struct Named(Vec<Vec<String>>);

impl<'a> Visit<'a> for Named {
    fn visit_item_use(&mut self, line: &'a ItemUse) {
        paths(&line.tree, &[], &mut self.0);
    }

    fn visit_path(&mut self, path: &'a Path) {
        // One word alone is a name in the same file, and most often a variable's.
        if path.segments.len() > 1 {
            let words = path.segments.iter();
            self.0
                .push(words.map(|word| word.ident.to_string()).collect());
        }
        visit_path(self, path);
    }

    /// `pub(in super)` needs nothing of what it names.
    fn visit_visibility(&mut self, _: &'a Visibility) {}

    /// A module within a file is looked at by itself.
    fn visit_item_mod(&mut self, _: &'a ItemMod) {}
}

/// Which file of the crate needs which, by the paths it names; tests within a file count as others do.
fn needs(modules: &Modules) -> Vec<(String, String)> {
    let mut needs = Vec::new();
    for (module, items) in &modules.items {
        for item in items {
            let mut named = Named::default();
            visit_item(&mut named, item);
            for path in named.0 {
                let Some(place) = resolved(modules, module, &path) else {
                    continue;
                };
                let (from, to) = (&modules.files[module], &modules.files[&place]);
                if from != to {
                    needs.push((name_of(from), name_of(to)));
                }
            }
        }
    }
    needs
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let mut in_circles = Vec::new();
    for (_, roots) in packages() {
        for root in roots {
            let needs = needs(&Modules::of(&root));
            let graph: DiGraphMap<&str, ()> =
                DiGraphMap::from_edges(needs.iter().map(|(from, to)| (&**from, &**to)));
            let circles = tarjan_scc(&graph);
            for circle in circles.into_iter().filter(|circle| circle.len() > 1) {
                let size = circle.len();
                in_circles.extend(circle.into_iter().map(|file| (file.to_owned(), size)));
            }
        }
    }
    Known::read("circle").is_exactly(in_circles.into_iter());
}

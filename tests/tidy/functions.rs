//! Functions are short enough to be seen at once.

use crate::files::{name_of, parsed, sources};
use crate::known::Known;
use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::Visit;

/// Lines from the one with the name to the last brace.
const MOST_LINES: usize = 70;

struct Functions {
    file: String,
    long: Vec<(String, usize)>,
}

impl Functions {
    fn look_at(&mut self, signature: &syn::Signature, end: Span) {
        let lines = end.end().line - signature.span().start().line + 1;
        if lines > MOST_LINES {
            self.long
                .push((format!("{}:{}", self.file, signature.ident), lines));
        }
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.look_at(&function.sig, function.block.span());
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.look_at(&function.sig, function.block.span());
        syn::visit::visit_impl_item_fn(self, function);
    }
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for path in [sources("crates"), sources("tests")].concat() {
        let mut functions = Functions {
            file: name_of(&path),
            long: Vec::new(),
        };
        functions.visit_file(&parsed(&path));
        long.extend(functions.long);
    }
    Known::read("long").is_exactly(long.into_iter());
}

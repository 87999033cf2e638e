//! What the errors say of themselves, read out of their `is_refusal` and `advice`: the exit status of each and what to do about it.

use crate::files::text_of;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use syn::visit::{self, Visit};
use syn::{Arm, Expr, ExprMacro, ImplItemFn, Item, Lit, Pat};

/// Of variants, by `Type::Variant`.
#[derive(Default)]
pub struct Classes {
    /// Those that are refusals: exit status 3.
    refusals: BTreeSet<String>,
    /// Types of which all are, but for these: by crate, as two crates may have types of one name.
    but: BTreeMap<(String, String), BTreeSet<String>>,
    /// Those for which it depends on their cause.
    either: BTreeSet<String>,
    advice: BTreeMap<String, Vec<String>>,
    constants: BTreeMap<String, String>,
    /// The crate that is read, and in it the type.
    crate_name: String,
    of: String,
}

/// The variants that a pattern names, the innermost where one lies in another.
fn variants(pattern: &Pat, of: &str, found: &mut BTreeSet<String>) {
    let mut named = |path: &syn::Path| {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|one| one.ident.to_string())
            .collect();
        if let [.., kind, variant] = &names[..] {
            let kind = if kind == "Self" { of } else { kind };
            found.insert(format!("{kind}::{variant}"));
        }
    };
    match pattern {
        Pat::Or(or) => or.cases.iter().for_each(|case| variants(case, of, found)),
        Pat::Struct(one) => named(&one.path),
        Pat::Path(one) => named(&one.path),
        Pat::TupleStruct(one) => {
            let mut inner = BTreeSet::new();
            one.elems
                .iter()
                .for_each(|inside| variants(inside, of, &mut inner));
            if inner.is_empty() {
                named(&one.path)
            } else {
                found.extend(inner)
            }
        }
        _ => {}
    }
}

/// The arguments of `matches!`.
fn matched(call: &ExprMacro) -> Option<(Pat, bool)> {
    if !call.mac.path.is_ident("matches") {
        return None;
    }
    let parse = |input: syn::parse::ParseStream<'_>| {
        input.parse::<Expr>()?;
        input.parse::<syn::Token![,]>()?;
        let pattern = Pat::parse_multi_with_leading_vert(input)?;
        let guarded = input.peek(syn::Token![if]);
        input.parse::<proc_macro2::TokenStream>()?;
        Ok((pattern, guarded))
    };
    syn::parse::Parser::parse2(parse, call.mac.tokens.clone()).ok()
}

/// All strings in an expression, those of macros, too.
#[derive(Default)]
struct Strings {
    found: Vec<String>,
    names: Vec<String>,
}

impl Visit<'_> for Strings {
    fn visit_lit(&mut self, literal: &Lit) {
        if let Lit::Str(text) = literal {
            self.found.push(text.value());
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        self.names.extend(path.get_ident().map(ToString::to_string));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &syn::Macro) {
        let first = call.tokens.clone().into_iter().next();
        let first = first.and_then(|token| syn::parse_str::<Lit>(&token.to_string()).ok());
        if let Some(literal) = first {
            self.visit_lit(&literal);
        }
    }
}

impl Classes {
    /// Reads what a file of a crate says.
    pub fn read(&mut self, crate_name: &str, path: &Path) {
        self.crate_name = crate_name.to_owned();
        let file = syn::parse_file(&text_of(path)).expect("source");
        for item in &file.items {
            let Item::Const(constant) = item else {
                continue;
            };
            let mut strings = Strings::default();
            strings.visit_expr(&constant.expr);
            let text = strings.found.concat();
            self.constants.insert(constant.ident.to_string(), text);
        }
        self.visit_file(&file);
    }

    /// The exit status that the command line has for an error of this kind.
    pub fn status(&self, crate_name: &str, error: &str) -> &'static str {
        let kind = error.split("::").next().unwrap_or_default();
        let all_but = self.but.get(&(crate_name.to_owned(), kind.to_owned()));
        let all_but = all_but.map(|but| !but.contains(error));
        match all_but.unwrap_or_else(|| self.refusals.contains(error)) {
            true => "3",
            false if self.either.contains(error) => "1 or 3",
            false => "1",
        }
    }

    /// What can be done about it; nothing, if nothing is said.
    pub fn advice(&self, error: &str) -> String {
        let said = self.advice.get(error).map(Vec::as_slice);
        said.unwrap_or_default().join("; or: ")
    }

    fn classify(&mut self, function: &ImplItemFn) {
        for statement in &function.block.stmts {
            let syn::Stmt::Expr(expression, None) = statement else {
                continue;
            };
            self.classify_by(expression, true);
        }
    }

    fn classify_by(&mut self, expression: &Expr, is: bool) {
        match expression {
            Expr::Unary(not) => self.classify_by(&not.expr, !is),
            Expr::Binary(either) => {
                self.classify_by(&either.left, is);
                self.classify_by(&either.right, is);
            }
            Expr::Macro(call) => {
                let Some((pattern, guarded)) = matched(call) else {
                    return;
                };
                let mut found = BTreeSet::new();
                variants(&pattern, &self.of, &mut found);
                match (is, guarded) {
                    (true, false) => self.refusals.extend(found),
                    (true, true) => self.either.extend(found),
                    (false, _) => {
                        _ = self
                            .but
                            .insert((self.crate_name.clone(), self.of.clone()), found)
                    }
                }
            }
            Expr::Match(by) => by.arms.iter().for_each(|arm| self.classify_arm(arm)),
            _ => {}
        }
    }

    fn classify_arm(&mut self, arm: &Arm) {
        let mut found = BTreeSet::new();
        variants(&arm.pat, &self.of, &mut found);
        match &*arm.body {
            Expr::Lit(literal) => {
                if matches!(&literal.lit, Lit::Bool(yes) if yes.value) {
                    self.refusals.extend(found);
                }
            }
            _ => self.either.extend(found),
        }
    }
}

/// The arms of `match self` in a function that gives advice.
struct Arms<'a>(&'a mut Classes);

impl Visit<'_> for Arms<'_> {
    fn visit_arm(&mut self, arm: &Arm) {
        let mut found = BTreeSet::new();
        variants(&arm.pat, &self.0.of, &mut found);
        let mut strings = Strings::default();
        strings.visit_expr(&arm.body);
        let named = strings
            .names
            .iter()
            .filter_map(|name| self.0.constants.get(name));
        let said: Vec<String> = strings.found.iter().chain(named).cloned().collect();
        for variant in found {
            let all = self.0.advice.entry(variant).or_default();
            all.extend(said.iter().filter(|text| !text.is_empty()).cloned());
        }
    }
}

impl Visit<'_> for Classes {
    fn visit_item_impl(&mut self, item: &syn::ItemImpl) {
        if let syn::Type::Path(path) = &*item.self_ty {
            let last = path.path.segments.last();
            self.of = last.map(|one| one.ident.to_string()).unwrap_or_default();
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_impl_item_fn(&mut self, function: &ImplItemFn) {
        if function.sig.ident == "is_refusal" {
            self.classify(function);
        }
        if function.sig.ident == "advice" {
            Arms(self).visit_impl_item_fn(function);
        }
    }
}

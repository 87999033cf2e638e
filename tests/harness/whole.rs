//! Everything of a process that stands still, as far as it can be seen from outside: its memory and mappings,
//! its threads with their registers and masks, what is queued, its descriptors with what is behind them, and what
//! `/proc` says about it. Two such readings are compared thing by thing.
//!
//! Nothing of the code under test takes part: `/proc` is read here, and the rest by the C program `targets/whole.c`. What cannot
//! be seen from outside (signal handlers, alternate stacks, itimers, the time a timer has left) is not here; the programs that
//! are restored prove it by going on.

mod facts;
mod left_out;
mod mappings;
mod proc;
mod witness;

use crate::frozen::Frozen;
use crate::image::Image;
use facts::Facts;
use std::collections::{BTreeMap, BTreeSet};

/// Everything of one process, or of several that belong together.
pub struct Whole {
    facts: Facts,
    images: BTreeMap<i32, Image>,
}

impl Whole {
    /// Reads these stopped processes, all of which stay stopped. Objects that they share are known as such.
    pub fn of(processes: &[&Frozen]) -> Self {
        let pids: Vec<i32> = processes.iter().map(|frozen| frozen.pid()).collect();
        let mut facts = Facts::new();
        let mut images = BTreeMap::new();
        let mut objects = mappings::Objects::default();
        let seen = witness::ask(&pids);
        for frozen in processes {
            // The program that was asked let each thread go back into its stop.
            frozen.assert_still_stopped();
            let pid = frozen.pid();
            let mut own = Facts::new();
            proc::read(pid, &pids, &mut own);
            mappings::read(pid, &mut objects, &mut own);
            let mut image = Image::of_process(frozen);
            witness::keep(&seen, pid, &mut own, &mut image);
            images.insert(pid, image);
            let named = own
                .into_iter()
                .map(|(name, is)| (format!("{pid} {name}"), is));
            facts.extend(named);
        }
        Self { facts, images }
    }

    /// The memory of one of the processes.
    pub fn image(&self, pid: i32) -> Option<&Image> {
        self.images.get(&pid)
    }

    /// The number of things that are compared, beside memory.
    pub fn fact_count(&self) -> usize {
        self.facts.len()
    }

    /// Leaves out what a connection to somebody outside was before it was given up: its ends, its state, and what was under way.
    pub fn forget_connections(&mut self) {
        const LISTENS: &str = "10";
        let is_connection = |(name, is): (&String, &String)| {
            let descriptor = name.strip_suffix(" tcp state")?;
            (is != LISTENS).then(|| format!("{descriptor} "))
        };
        let connections: Vec<String> = self.facts.iter().filter_map(is_connection).collect();
        let of_connection = ["name", "peer", "tcp state", "bytes queued", "queued"];
        self.facts.retain(|name, _| {
            let found = connections
                .iter()
                .find_map(|begin| name.strip_prefix(begin));
            !found.is_some_and(|what| of_connection.contains(&what))
        });
    }

    /// Each thing in which two readings differ: its name, what it was, and what it is.
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.facts.keys().chain(after.facts.keys()).collect();
        let shown = |facts: &Facts, name: &str| match facts.get(name) {
            Some(is) if is.len() > 600 => format!("{}... ({} bytes)", cut(is), is.len()),
            Some(is) => is.clone(),
            None => "nothing".to_owned(),
        };
        let mut found: Vec<String> = names
            .into_iter()
            .filter(|name| self.facts.get(*name) != after.facts.get(*name))
            .map(|name| {
                let (was, is) = (shown(&self.facts, name), shown(&after.facts, name));
                format!("{name}: was {was}, is {is}{}", place(self, after, name))
            })
            .collect();
        for (pid, image) in &self.images {
            let difference = after.images.get(pid).map(|other| image.difference(other));
            match difference {
                Some(None) => {}
                Some(Some(difference)) => found.push(format!("{pid} memory: {difference}")),
                None => found.push(format!("{pid} is gone")),
            }
        }
        found
    }
}

/// The beginning of a long text.
fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Where two long texts begin to differ.
fn place(before: &Whole, after: &Whole, name: &str) -> String {
    let (Some(was), Some(is)) = (before.facts.get(name), after.facts.get(name)) else {
        return String::new();
    };
    let same = was.bytes().zip(is.bytes()).take_while(|(a, b)| a == b);
    match (was.len() > 600).then(|| same.count()) {
        Some(at) => {
            let rest = |text: &str| text.chars().skip(at).take(40).collect::<String>();
            format!(" (from place {at}: {}, {})", rest(was), rest(is))
        }
        None => String::new(),
    }
}

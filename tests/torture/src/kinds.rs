//! Every kind of operation, with an example that succeeds where the kernel can do it at all. A long run
//! must have done each kind that the example showed to be available.

use crate::conditions::Conditions;
use crate::program::parse;
use crate::stage::Stage;
use crate::tally::Tally;
use std::collections::BTreeMap;

/// Steps a line, apart by semicolons; each may be any step. The last is of the kind that is meant.
const EXAMPLES: &str = include_str!("examples.txt");

/// Which kinds can be done here: those that were done in an example, and the others with the error.
#[derive(Debug)]
pub struct Available {
    /// The kinds that can be done.
    pub yes: Vec<String>,
    /// The kinds that cannot, with the reason.
    pub no: BTreeMap<String, String>,
}

/// The examples, each as its steps.
pub fn examples() -> Vec<Vec<String>> {
    let steps = |line: String| line.split(';').map(|step| step.trim().to_owned()).collect();
    parse(EXAMPLES).into_iter().map(steps).collect()
}

/// Does all examples, each in a target of its own kind of start.
pub fn available(conditions: &Conditions) -> Available {
    let mut available = Available {
        yes: Vec::new(),
        no: BTreeMap::new(),
    };
    for example in examples() {
        let Some(last) = example.last() else { continue };
        let kind = crate::program::kind(last);
        match attempt(&example, conditions).refused.get(&kind) {
            None => available.yes.push(kind),
            Some(errors) => {
                let errors: Vec<&str> = errors.keys().map(String::as_str).collect();
                available.no.insert(kind, errors.join(", "));
            }
        }
    }
    available
}

/// What the steps of one example came to.
fn attempt(example: &[String], conditions: &Conditions) -> Tally {
    let mut stage = Stage::new(conditions);
    for step in example {
        let outcome = if crate::program::is_of_driver(step) {
            stage.drive(step)
        } else {
            stage.operate(std::slice::from_ref(step))
        };
        assert_eq!(outcome, Ok(()), "{step}");
    }
    std::mem::take(&mut stage.tally)
}

/// The available kinds that `tally` has not done.
pub fn missing(available: &Available, tally: &Tally) -> Vec<String> {
    let is_missing = |kind: &&String| !tally.done.contains_key(*kind);
    available.yes.iter().filter(is_missing).cloned().collect()
}

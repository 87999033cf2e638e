//! What may differ from run to run: seeds and counts.

use std::str::FromStr;

/// The environment variable `name`, or `otherwise` if it is not set.
pub fn from_environment<T: FromStr>(name: &str, otherwise: T) -> T {
    match std::env::var(name) {
        Err(_) => otherwise,
        Ok(text) => match text.parse() {
            Ok(value) => value,
            Err(_) => panic!("{name}={text} cannot be understood"),
        },
    }
}

/// The number of epochs of a long test: `PAGETIDE_EPOCHS`, or `otherwise`.
pub fn epochs(otherwise: usize) -> usize {
    from_environment("PAGETIDE_EPOCHS", otherwise)
}

/// A seed that differs from run to run, unless `PAGETIDE_SEED` gives one. A test that fails says it, so that it
/// can be run again.
pub fn seed(test: &str) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let fresh = now.map_or(1, |since| since.as_nanos() as u64 % 1_000_000_007);
    let seed = from_environment("PAGETIDE_SEED", fresh);
    println!("{test}: PAGETIDE_SEED={seed}");
    crate::failures::needed_again(&format!("PAGETIDE_SEED={seed}"));
    seed
}

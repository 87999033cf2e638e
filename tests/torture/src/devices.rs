//! The operations of the target on what writes to memory that it was given: a socket of AF_XDP, and a machine of KVM.

use crate::model::Model;

/// One of a socket.
pub fn packets(m: &mut Model) -> Option<String> {
    let line = match m.random.dice(10) {
        0 => "packets_close".to_owned(),
        1 | 2 => given("packets", m),
        _ => format!("packet {}", m.seed()),
    };
    Some(line)
}

/// One of a machine.
pub fn guest(m: &mut Model) -> Option<String> {
    let line = match m.random.dice(12) {
        0 => "guest_close".to_owned(),
        1 | 2 => given("guest", m),
        _ => format!("guest_store {} {}", m.random.dice(64), m.seed()),
    };
    Some(line)
}

/// A range that is there, mostly made for it.
fn given(verb: &str, m: &mut Model) -> String {
    if m.random.one_in(3) {
        let (first, count) = m.range();
        return format!("{verb} {first} {count}");
    }
    let count = 2 + m.random.dice(40);
    let first = m.new_place(count);
    m.mapped(first, count);
    let kind = m.random.pick(&["anon", "anon", "anon", "shared"]);
    format!("over {kind} {first} {count} 3;{verb} {first} {count}")
}

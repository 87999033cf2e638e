//! The operations of the target on an io_uring.

use crate::model::Model;

/// One of them.
pub fn ring(m: &mut Model) -> Option<String> {
    let seed = m.seed();
    let line = match m.random.dice(28) {
        0 | 1 => {
            let own = m.flavour.own_rings && m.random.one_in(2);
            if own {
                format!("ring {} {}", m.page(), m.random.dice(2))
            } else {
                "ring 0 0".to_owned()
            }
        }
        2 if m.random.one_in(3) => "ring_close".to_owned(),
        3 | 4 => {
            let (first, count) = m.range();
            m.buffer = Some((first, count));
            if m.random.one_in(3) {
                format!("ring_sparse {first} {count}")
            } else {
                format!("ring_buffer {first} {count}")
            }
        }
        5 if m.random.one_in(2) => "ring_no_buffer".to_owned(),
        6..=8 => format!("ring_read {} {seed}", m.page()),
        9..=13 => format!("ring_read_fixed {} {seed}", in_buffer(m)),
        14 => format!("ring_wait {} 0", m.page()),
        15 => format!("ring_wait {} 1", in_buffer(m)),
        16 | 17 => format!("ring_arrive {seed} {}", m.random.dice(2)),
        // All memory is compared from then on, as with a ring in own memory, and that would hide what others lose.
        18 if m.flavour.own_rings => {
            let (first, count) = m.range();
            format!("ring_provide {first} {count}")
        }
        19..=23 if m.flavour.own_rings => format!("ring_take {seed}"),
        24 => "ring_clone".to_owned(),
        25 if m.flavour.own_rings => "ring_decoy".to_owned(),
        _ => {
            let (object, length) = m.object();
            format!("aio {} {object} {}", m.page(), m.random.dice(length))
        }
    };
    Some(line)
}

/// What a child does with the ring of its parent: it reads into the buffers of that one.
pub fn of_child(m: &mut Model) -> Option<String> {
    let seed = m.seed();
    Some(format!("ring_read_fixed {} {seed}", in_buffer(m)))
}

/// A page of the registered buffer.
fn in_buffer(m: &mut Model) -> u64 {
    match m.buffer {
        Some((first, count)) => first + m.random.dice(count),
        None => m.page(),
    }
}

//! Prevents that pages are lost between captures and whoever stores them: all orders in which threads can meet in the
//! hand-over are run. Memory is a set of marks here, as the kernel keeps them, and a store a set of pages.

#[path = "../src/own_memory/hand_over.rs"]
#[allow(dead_code)]
mod hand_over;

/// The checker's locks in place of the real ones.
mod sync {
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
}

use hand_over::HandOver;
use loom::sync::{Arc, Mutex};
use loom::thread;

/// What is written and what is stored, a bit a page.
#[derive(Default)]
struct World {
    marks: Mutex<u64>,
    stored: Mutex<u64>,
}

/// What one capture holds.
struct Part {
    world: Arc<World>,
    pages: u64,
}

impl Drop for Part {
    /// It counts as written again.
    fn drop(&mut self) {
        *self.world.marks.lock().unwrap() |= self.pages;
    }
}

struct Program {
    world: Arc<World>,
    line: HandOver<Part>,
}

impl Program {
    fn new() -> Arc<Self> {
        let (world, line) = (Arc::new(World::default()), HandOver::default());
        Arc::new(Self { world, line })
    }

    fn write(&self, page: u32) {
        *self.world.marks.lock().unwrap() |= 1 << page;
    }

    fn capture(&self) -> u64 {
        let number = self.line.begin().number;
        let pages = std::mem::take(&mut *self.world.marks.lock().unwrap());
        let world = Arc::clone(&self.world);
        self.line.hold(number, Part { world, pages });
        number
    }

    /// Stores capture `number` unless it `fails`; true if it was there to be stored.
    fn commit(&self, number: u64, fails: bool) -> bool {
        let Ok(parts) = self.line.take(number) else {
            return false;
        };
        self.store(number, parts, fails);
        true
    }

    fn store(&self, number: u64, parts: Vec<Part>, fails: bool) {
        if fails {
            return self.line.failed(number, parts);
        }
        for mut part in parts {
            *self.world.stored.lock().unwrap() |= std::mem::take(&mut part.pages);
        }
        self.line.stored(number);
    }

    fn stored(&self) -> u64 {
        *self.world.stored.lock().unwrap()
    }
}

/// One capture is under way when another is taken and stored; `first` says what becomes of the first meanwhile. Whatever the
/// order, the second snapshot has all that was written before it.
fn beside(first: impl Fn(&Program, u64) + Send + Sync + Copy + 'static) {
    loom::model(move || {
        let program = Program::new();
        program.write(0);
        let number = program.capture();
        let other = Arc::clone(&program);
        let beside = thread::spawn(move || first(&other, number));
        program.write(1);
        let second = program.capture();
        assert!(program.commit(second, false));
        assert_eq!(program.stored() & 0b11, 0b11, "a page is missing");
        beside.join().unwrap();
        assert_eq!(program.line.durable(), 2);
    });
}

#[test]
fn given_back_while_the_next_is_taken() {
    beside(|program, number| program.line.give_back(number));
}

#[test]
fn stored_while_the_next_is_taken() {
    beside(|program, number| {
        program.commit(number, false);
    });
}

#[test]
fn failed_while_the_next_is_taken() {
    beside(|program, number| {
        program.commit(number, true);
    });
}

#[test]
fn forgotten() {
    beside(|_, _| {});
}

#[test]
fn left_for_the_next() {
    loom::model(|| {
        let program = Program::new();
        program.write(0);
        let first = program.capture();
        program.write(1);
        let left = program.capture();
        program.line.leave(left);
        let other = Arc::clone(&program);
        let beside = thread::spawn(move || other.commit(first, true));
        program.write(2);
        let last = program.capture();
        assert!(program.commit(last, false));
        assert_eq!(program.stored(), 0b111);
        beside.join().unwrap();
    });
}

#[test]
fn stored_by_a_thread_in_the_background() {
    loom::model(|| {
        let program = Program::new();
        let other = Arc::clone(&program);
        let worker = thread::spawn(move || {
            let mut fails = true;
            while let Some((number, parts)) = other.line.take_queued() {
                other.store(number, parts, std::mem::take(&mut fails));
            }
        });
        program.write(0);
        let first = program.capture();
        program.line.queue(first, |_| {}).unwrap();
        program.write(1);
        let second = program.capture();
        program.line.queue(second, |_| {}).unwrap();
        program.line.close();
        worker.join().unwrap();
        let marks = *program.world.marks.lock().unwrap();
        assert_eq!(program.stored() | marks, 0b11);
    });
}

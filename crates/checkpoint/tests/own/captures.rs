//! Captures under way: several at a time, from several threads, in any order, failing, forgotten and given back. Each
//! snapshot is compared with a copy of the memory that the test made when it was captured.

use crate::snaps::{Numbers, content, differing_from, exact, own, place, snap};
use pagetide::{Captured, OwnMemory, OwnMemoryError, OwnMemoryOptions, OwnSnapshot, Ticket};
use pagetide_pages::PageCount;
use pagetide_snapshot::storage::Fault;
use pagetide_snapshot::{MemoryStorage, SnapshotKind, Store};
use pagetide_testing::{PAGE, Region, needs};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const PAGES: usize = 96;

fn in_memory(region: &Region) -> (MemoryStorage, OwnMemory) {
    let storage = MemoryStorage::new();
    let store = Store::create(Arc::new(storage.clone())).expect("a new store");
    let made = OwnMemory::new(store, &[place(region, 0)], OwnMemoryOptions::default());
    (storage, made.expect("a good region"))
}

#[test]
fn captures_under_way_become_one_snapshot_each() {
    needs!(wp_async);
    let region = Region::filled(PAGES, 5);
    let (storage, mut own) = in_memory(&region);
    let names = storage.names();
    let mut under_way = Vec::new();
    for page in 0..5 {
        under_way.push((own.capture().unwrap(), content(&region)));
        region.store(page, 70 + page as u8);
    }
    // The third page is again what it was when the first was captured: later ones must not miss it.
    region.store(2, 5);
    under_way.push((own.capture().unwrap(), content(&region)));
    assert_eq!(storage.names(), names, "a capture has made a file");
    for (number, (captured, truth)) in under_way.into_iter().enumerate() {
        assert_eq!(captured.number(), number as u64 + 1);
        let stored = captured.commit().unwrap();
        assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
        let expected = match number {
            0 => (SnapshotKind::Full, PageCount(PAGES as u64)),
            5 => (SnapshotKind::Delta, PageCount(2)),
            _ => (SnapshotKind::Delta, PageCount(1)),
        };
        assert_eq!((stored.view.info().kind, stored.written_pages), expected);
        assert_eq!(own.durable(), number as u64 + 1);
    }
}

/// What is compared is compared with what was stored, and not with what is under way.
#[test]
fn what_is_compared_may_be_again_what_was_stored_before() {
    needs!(wp_async);
    let region = Region::shared(64);
    region.fill(0..64, 5);
    let (_, mut own) = in_memory(&region);
    exact(&mut own, &region, "full");
    region.store(3, 9);
    let (first, then) = (own.capture().unwrap(), content(&region));
    region.store(3, 5);
    let (second, now) = (own.capture().unwrap(), content(&region));
    assert_eq!(differing_from(&first.commit().unwrap().view, &then), [0; 0]);
    assert_eq!(differing_from(&second.commit().unwrap().view, &now), [0; 0]);
}

#[test]
fn a_later_one_has_what_fell_to_it() {
    needs!(wp_async);
    let region = Region::filled(PAGES, 5);
    let (_, mut own) = in_memory(&region);
    exact(&mut own, &region, "full");
    region.store(1, 1);
    let given_back = own.capture().unwrap();
    region.store(2, 2);
    let overtaken = own.capture().unwrap();
    region.store(3, 3);
    let forgotten = own.capture().unwrap();
    region.store(4, 4);
    let last = own.capture().unwrap();
    given_back.give_back();
    std::mem::forget(forgotten);
    let truth = content(&region);
    region.store(5, 5);
    let stored = last.commit().unwrap();
    assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
    assert_eq!(stored.written_pages, PageCount(4));
    let error = overtaken.commit().expect_err("it is stored with the last");
    assert!(matches!(error, OwnMemoryError::StoredWithLater), "{error}");
    assert_eq!(own.durable(), 5);
    assert_eq!(
        exact(&mut own, &region, "and then").written_pages,
        PageCount(1)
    );
}

/// What a thread is given to do with a capture.
enum Job {
    Commit(Captured),
    Drop(Captured),
}

/// Random captures, committed here, there and in the background, given back, and failing.
#[test]
fn whatever_is_stored_is_what_was_captured() {
    needs!(wp_async);
    for seed in 1..9 {
        let region = Region::filled(PAGES, 5);
        let (storage, mut own) = in_memory(&region);
        let mut numbers = Numbers(seed * 0x9e37_79b9);
        let mut truths: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut tickets: Vec<Ticket> = Vec::new();
        let mut held: Vec<Captured> = Vec::new();
        let mut stored: Vec<OwnSnapshot> = Vec::new();
        let (jobs, waiting) = mpsc::channel::<Job>();
        let worker = std::thread::spawn(move || {
            let mut stored = Vec::new();
            for job in waiting {
                match job {
                    Job::Commit(captured) => stored.extend(captured.commit().ok()),
                    Job::Drop(captured) => drop(captured),
                }
            }
            stored
        });
        for _ in 0..150 {
            for _ in 0..numbers.below(6) {
                let page = numbers.below(PAGES as u64) as usize;
                // Few values, so that pages often become what they were.
                region.store(page, numbers.below(3) as u8);
            }
            match numbers.below(20) {
                0 => storage.set_fault(Some(Fault::FailFrom(numbers.below(4)))),
                1 | 2 => storage.set_fault(None),
                3 => drop(own.precopy()),
                _ => {}
            }
            let truth = content(&region);
            let Ok(captured) = own.capture() else {
                continue;
            };
            truths.insert(captured.number(), truth);
            match numbers.below(8) {
                0 | 1 => stored.extend(captured.commit().ok()),
                2 | 3 => tickets.extend(captured.commit_in_background().ok()),
                4 => drop(jobs.send(Job::Commit(captured))),
                5 => drop(jobs.send(Job::Drop(captured))),
                6 => std::mem::forget(captured),
                _ => held.push(captured),
            }
            if numbers.below(4) == 0 && !held.is_empty() {
                let at = numbers.below(held.len() as u64) as usize;
                stored.extend(held.swap_remove(at).commit().ok());
            }
        }
        drop(jobs);
        stored.extend(worker.join().expect("the worker"));
        stored.extend(tickets.into_iter().filter_map(|ticket| ticket.wait().ok()));
        storage.set_fault(None);
        let last = exact(&mut own, &region, "the last");
        assert!(stored.len() > 20, "seed {seed}: only {}", stored.len());
        for snapshot in &stored {
            let truth = &truths[&snapshot.number];
            let differing = differing_from(&snapshot.view, truth);
            assert_eq!(differing, [0; 0], "seed {seed}: {}", snapshot.number);
        }
        drop((held, own));
        let again = Store::open(Arc::new(storage)).unwrap().view(last.view.id());
        assert_eq!(differing_from(&again.unwrap(), &content(&region)), [0; 0]);
    }
}

#[test]
fn what_is_given_to_the_background_is_stored_in_order_and_told() {
    needs!(wp_async);
    let region = Region::filled(PAGES, 5);
    let (_, mut own) = in_memory(&region);
    let (tell, told) = mpsc::channel();
    let mut tickets = Vec::new();
    for page in 0..10 {
        region.store(page, 9);
        let captured = own.capture().unwrap();
        match page % 2 {
            0 => tickets.push(captured.commit_in_background().unwrap()),
            _ => {
                let tell = tell.clone();
                let done = move |outcome: Result<OwnSnapshot, _>| tell.send(outcome).unwrap();
                captured.commit_and_call(done).unwrap();
            }
        }
    }
    assert!(own.wait_until_durable(10));
    assert!(!own.wait_until_durable(11), "there is no such capture");
    let mut ids = HashMap::new();
    for ticket in tickets {
        assert!(ticket.is_done());
        let number = ticket.number();
        let Ok(outcome) = ticket.try_wait() else {
            panic!("capture {number} is durable, and its ticket does not know");
        };
        ids.insert(number, outcome.unwrap().view.id().0);
    }
    for _ in 0..5 {
        let snapshot = told.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
        ids.insert(snapshot.number, snapshot.view.id().0);
    }
    assert!((1..=10).all(|number| ids[&number] == number), "{ids:?}");
}

/// A monitor handles its signals on threads of its own choice.
#[test]
fn the_thread_that_stores_takes_no_signals() {
    needs!(wp_async);
    let region = Region::filled(8, 5);
    let mut own = own(&region);
    own.capture()
        .unwrap()
        .commit_in_background()
        .unwrap()
        .wait()
        .unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let named = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        status
            .starts_with("Name:\tpagetide-store\n")
            .then_some(status)
    });
    let blocked: Vec<String> = named
        .filter_map(|status| {
            let line = status.lines().find(|line| line.starts_with("SigBlk:"))?;
            Some(line.to_owned())
        })
        .collect();
    assert!(!blocked.is_empty());
    for line in blocked {
        // All but SIGKILL, SIGSTOP and the two that the C library keeps for itself.
        assert!(
            line.ends_with("fffffffe3ffbfeff") || line.ends_with("fffffffe7ffbfeff"),
            "{line}"
        );
    }
}

#[test]
fn dropping_the_owner_stores_what_is_queued_and_gives_back_what_is_held() {
    needs!(wp_async);
    let region = Region::filled(PAGES, 5);
    let (storage, mut own) = in_memory(&region);
    let store = Store::open(Arc::new(storage)).unwrap();
    let queued = own.capture().unwrap().commit_in_background().unwrap();
    region.store(1, 1);
    let mut held = own.capture().unwrap();
    drop(own);
    assert!(queued.is_done());
    queued.wait().unwrap();
    let error = held.attach("late", Vec::new()).expect_err("it is gone");
    assert!(matches!(error, OwnMemoryError::Closed), "{error}");
    drop(store.lock().expect("nobody has the lock"));
    let made = OwnMemory::new(store, &[place(&region, 0)], OwnMemoryOptions::default());
    let mut again = made.expect("the memory is free, though a capture of it is held");
    exact(&mut again, &region, "another one");
    let error = held.commit().expect_err("it is gone");
    assert!(matches!(error, OwnMemoryError::Closed), "{error}");
}

#[test]
fn attachments_are_checked_when_they_are_given() {
    needs!(wp_async);
    let region = Region::filled(8, 5);
    let mut own = own(&region);
    let mut captured = own.capture().unwrap();
    captured.attach("a", vec![1; 1 << 20]).unwrap();
    for (name, bytes) in [("b", 48 << 20), ("", 1)] {
        let error = captured.attach(name, vec![0; bytes]).expect_err("too much");
        assert!(matches!(error, OwnMemoryError::Write(_)), "{error}");
    }
    captured.attach("a", vec![2; 3]).unwrap();
    captured.attach("b", vec![3; 47 << 20]).unwrap();
    let view = captured
        .commit()
        .expect("what was taken can be stored")
        .view;
    assert_eq!(view.attachment("a"), Some(&[2u8; 3][..]));
    assert_eq!(view.attachments().len(), 2);
}

#[test]
fn more_than_the_buffer_holds_is_stored_while_it_is_captured() {
    needs!(wp_async);
    let region = Region::filled(4000, 5);
    let mut options = OwnMemoryOptions::default();
    options.buffer_bytes = 4 << 20;
    let store = crate::snaps::store();
    let mut own = OwnMemory::new(store, &[place(&region, 0)], options).unwrap();
    let truth = content(&region);
    let full = own.capture().unwrap();
    region.store(1, 1);
    let delta = own.capture().unwrap();
    region.fill(0..4000, 7);
    let error = own.capture().expect_err("two are under way");
    assert!(matches!(error, OwnMemoryError::BufferFull), "{error}");
    let stored = full.commit().unwrap();
    assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
    delta.commit().unwrap();
    let all = exact(&mut own, &region, "all of it");
    assert_eq!(all.written_pages, PageCount(4000));
    // Given back and overtaken, with a part of it stored.
    region.fill(0..4000, 8);
    let part = own.capture().unwrap();
    region.store(9, 9);
    let next = own.capture().unwrap();
    part.give_back();
    let truth = content(&region);
    assert_eq!(differing_from(&next.commit().unwrap().view, &truth), [0; 0]);
    region.fill(0..4000, 3);
    drop(own.capture().unwrap());
    exact(&mut own, &region, "given back");
}

#[test]
fn a_first_snapshot_that_was_copied_before_pauses_for_the_rest() {
    needs!(wp_async);
    let region = Region::filled(8000, 5);
    let mut options = OwnMemoryOptions::default();
    options.buffer_bytes = 4 << 20;
    let made = OwnMemory::new(crate::snaps::store(), &[place(&region, 0)], options);
    let mut own = made.unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut numbers = Numbers(7);
            while !stop.load(Ordering::Acquire) {
                let page = numbers.below(8000) as usize;
                region.store_at(page * PAGE + 8 * (numbers.below(500) as usize), 9);
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        assert_eq!(own.precopy().unwrap(), PageCount(8000));
        assert!(own.precopy().unwrap() < PageCount(8000));
        stop.store(true, Ordering::Release);
    });
    let truth = content(&region);
    let captured = own.capture().unwrap();
    let stored = captured.commit().unwrap();
    assert_eq!(stored.view.info().kind, SnapshotKind::Full);
    assert_eq!(differing_from(&stored.view, &truth), [0; 0]);
    region.store(3, 3);
    assert_eq!(snap(&mut own).unwrap().written_pages, PageCount(1));
}

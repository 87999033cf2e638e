//! Prevents: a page that changes its NUMA node from being taken for written, or, worse, from losing that
//! it was. And a node told of the wrong page.

use nix::libc;
use pagetide_kernel::move_pages::{
    MovePagesError, Node, PageErrno, move_all_to, move_to, nodes_of,
};
use pagetide_kernel::numa_maps::numa_mappings;
use pagetide_kernel::pagemap_scan::Pagemap;
use pagetide_kernel::userfaultfd::WriteProtector;
use pagetide_pages::PageIndex;
use pagetide_testing::child::{Child, create_userfaultfd};
use pagetide_testing::ring::Ring;
use pagetide_testing::watched::{Watcher, loads};
use pagetide_testing::{PAGE, Region, needs, skipped};
use std::ops::Range;
use std::time::{Duration, Instant};

const PAGES: usize = 8;

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

fn indices(region: &Region, pages: Range<usize>) -> Vec<PageIndex> {
    region.range(pages).pages().collect()
}

/// The nodes of this machine that have memory.
fn nodes() -> Vec<Node> {
    let path = "/sys/devices/system/node/has_memory";
    let list = std::fs::read_to_string(path).unwrap_or_else(|_| "0".to_owned());
    let number = |text: &str| text.parse::<u32>().expect("a node");
    let span = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first)..=number(last),
        None => number(part)..=number(part),
    };
    list.trim().split(',').flat_map(span).map(Node).collect()
}

/// Two nodes; `None`, and the test is skipped, if the machine has fewer.
fn two_nodes(test: &str) -> Option<(Node, Node)> {
    match nodes()[..] {
        [first, second, ..] => Some((first, second)),
        _ => {
            skipped(test, "one NUMA node");
            None
        }
    }
}

/// False, and the test is skipped, where the kernel tells no nodes at all.
fn tells_nodes(test: &str) -> bool {
    match nodes_of(0, &[PageIndex(1)]) {
        Err(MovePagesError::Unsupported) => {
            skipped(test, "a kernel without CONFIG_NUMA");
            false
        }
        _ => true,
    }
}

#[test]
fn pages_have_a_node_and_what_is_not_there_has_none() {
    if !tells_nodes("pages_have_a_node_and_what_is_not_there_has_none") {
        return;
    }
    let region = Region::private(PAGES);
    region.store(1, 1);
    assert_eq!(region.load(2), 0, "the zero page");
    region.unmap(3..4);
    for pid in [0, own_pid()] {
        let found = nodes_of(pid, &indices(&region, 0..4)).unwrap();
        // Linux 6.1 says EFAULT here, too.
        let untouched = [libc::ENOENT, libc::EFAULT].map(|errno| Err(PageErrno(errno)));
        assert!(untouched.contains(&found[0]), "never touched: {found:?}");
        assert!(matches!(found[1], Ok(node) if nodes().contains(&node)));
        assert_eq!(found[2], Err(PageErrno(libc::EFAULT)));
        assert_eq!(found[3], Err(PageErrno(libc::EFAULT)), "not mapped");
    }
    let state = Pagemap::of_self()
        .unwrap()
        .entries(region.range(0..1))
        .unwrap();
    assert!(!state[0].is_present(), "asking maps nothing");
}

#[test]
fn more_pages_than_one_call_takes_are_told_in_order() {
    if !tells_nodes("more_pages_than_one_call_takes_are_told_in_order") {
        return;
    }
    let pages = 40_000;
    let region = Region::private(pages);
    let touched = |page: &usize| page.is_multiple_of(3) || page % 16384 == 1;
    let touch_and_ask = || {
        (0..pages)
            .filter(touched)
            .for_each(|page| region.store(page, 1));
        nodes_of(0, &indices(&region, 0..pages)).unwrap()
    };
    let mut found = touch_and_ask();
    // Where memory is short, a page that was touched may be in swap by now.
    for _ in 0..20 {
        if (0..pages).filter(touched).all(|page| found[page].is_ok()) {
            break;
        }
        found = touch_and_ask();
    }
    assert_eq!(found.len(), pages);
    for (page, node) in found.iter().enumerate() {
        assert_eq!(node.is_ok(), touched(&page), "page {page}: {node:?}");
    }
    assert_eq!(nodes_of(0, &[]).unwrap(), []);
}

#[test]
fn the_nodes_add_up_to_those_of_numa_maps() {
    if !tells_nodes("the_nodes_add_up_to_those_of_numa_maps") {
        return;
    }
    let region = Region::filled(PAGES, 1);
    region.advise(2..3, libc::MADV_DONTNEED).unwrap();
    let found = nodes_of(0, &indices(&region, 0..PAGES)).unwrap();
    let all = numa_mappings(own_pid()).unwrap();
    let listed = all
        .iter()
        .find(|mapping| mapping.start == region.start())
        .expect("the mapping");
    for node in nodes() {
        let here = found.iter().filter(|found| **found == Ok(node)).count();
        let counted = listed.nodes.get(&node.0).copied().unwrap_or(0);
        assert_eq!(here as u64, counted, "{node:?}");
    }
    assert_eq!(listed.nodes.values().sum::<u64>(), PAGES as u64 - 1);
}

#[test]
fn of_a_process_that_is_gone_nothing_is_told() {
    if !tells_nodes("of_a_process_that_is_gone_nothing_is_told") {
        return;
    }
    let child = Child::run(|_| {});
    let pid = child.pid();
    child.kill();
    match nodes_of(pid, &[PageIndex(1)]) {
        Err(MovePagesError::Gone { pid: named }) => assert_eq!(named, pid),
        other => panic!("{other:?}"),
    }
}

#[test]
fn pages_moved_to_where_they_are_stay() {
    needs!(wp_async);
    if !tells_nodes("pages_moved_to_where_they_are_stay") {
        return;
    }
    let watcher = Watcher::of_self();
    let region = Region::filled(PAGES, 1);
    watcher.settle(&region);
    region.store(3, 2);
    let pages = indices(&region, 0..PAGES);
    let at = nodes_of(0, &pages).unwrap();
    let node = at[0].unwrap();
    assert_eq!(move_to(0, &pages[..1], node).unwrap(), [Ok(node)]);
    assert_eq!(watcher.written(&region), [3]);
    let nowhere = Node(1023);
    assert!(
        move_to(0, &pages, nowhere).is_err(),
        "there is no such node"
    );
    assert_eq!(loads(&region), [1, 1, 1, 2, 1, 1, 1, 1]);
}

#[test]
fn pages_moved_to_another_node_keep_content_and_state() {
    needs!(wp_async);
    let test = "pages_moved_to_another_node_keep_content_and_state";
    let Some((first, second)) = two_nodes(test) else {
        return;
    };
    let watcher = Watcher::of_self();
    let region = Region::filled(PAGES, 1);
    let pages = indices(&region, 0..PAGES);
    move_to(0, &pages, first).unwrap();
    watcher.settle(&region);
    region.store(3, 2);
    region.advise(5..6, libc::MADV_DONTNEED).unwrap();
    let moved = move_to(0, &pages, second).unwrap();
    for (page, node) in moved.iter().enumerate() {
        let expected = match page {
            5 => Err(PageErrno(libc::ENOENT)),
            _ => Ok(second),
        };
        assert_eq!(*node, expected, "page {page}");
    }
    assert_eq!(nodes_of(0, &pages).unwrap(), moved);
    assert_eq!(loads(&region), [1, 1, 1, 2, 1, 0, 1, 1]);
    assert_eq!(watcher.written(&region), [3, 5], "clean stays clean");
    move_to(0, &pages, first).unwrap();
    assert_eq!(watcher.written(&region), []);
    region.store(6, 3);
    move_to(0, &pages, second).unwrap();
    assert_eq!(watcher.written(&region), [6], "written stays written");
}

#[test]
fn pages_of_another_process_moved_from_outside_keep_their_state() {
    needs!(wp_async);
    let test = "pages_of_another_process_moved_from_outside_keep_their_state";
    let Some((first, second)) = two_nodes(test) else {
        return;
    };
    let region = Region::private(PAGES);
    let child = Child::run(|board| {
        // Its own from the start: pages that a fork has shared are not moved.
        region.fill(0..PAGES, 1);
        board.tell(0, create_userfaultfd());
        board.wait(1);
        region.store(4, 9);
        board.tell(2, 1);
    });
    let fd = child.fetch(child.wait(0));
    let watcher = Watcher {
        protector: WriteProtector::enable(fd).unwrap(),
        pagemap: Pagemap::of_process(child.pid()).unwrap(),
    };
    let pages = indices(&region, 0..PAGES);
    move_to(child.pid(), &pages, first).unwrap();
    watcher.settle(&region);
    child.tell(1, 1);
    child.wait(2);
    let moved = move_to(child.pid(), &pages, second).unwrap();
    assert_eq!(moved, [Ok(second); PAGES]);
    assert_eq!(watcher.written(&region), [4]);
    assert_eq!(region.load_at(PAGE), 0, "nothing of it is ours");
}

#[test]
fn pages_that_others_map_too_move_for_who_may_move_all() {
    let test = "pages_that_others_map_too_move_for_who_may_move_all";
    if !tells_nodes(test) {
        return;
    }
    let region = Region::filled(2, 7);
    let child = Child::run(|_| {});
    let pages = indices(&region, 0..2);
    let here = nodes_of(0, &pages).unwrap()[0].expect("it is there");
    // Where it is it can stay, whoever maps it.
    assert_eq!(move_all_to(0, &pages, here).unwrap()[0], Ok(here));
    assert!(matches!(
        move_all_to(0, &pages, Node(1000)),
        Err(MovePagesError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENODEV)
    ));
    if let Some((first, second)) = two_nodes(test) {
        let there = if here == first { second } else { first };
        let refused = move_to(0, &pages, there).unwrap();
        assert_eq!(refused, [Err(PageErrno(libc::EACCES)); 2]);
        assert_eq!(move_all_to(0, &pages, there).unwrap(), [Ok(there); 2]);
        assert_eq!(nodes_of(child.pid(), &pages).unwrap(), [Ok(there); 2]);
        assert_eq!(region.load(0), 7);
    }
    child.kill();
}

#[test]
fn pages_that_are_pinned_stay_and_say_so_while_others_move() {
    let test = "pages_that_are_pinned_stay_and_say_so_while_others_move";
    let Some((first, second)) = two_nodes(test) else {
        return;
    };
    let region = Region::filled(PAGES, 7);
    let pages = indices(&region, 0..PAGES);
    assert_eq!(move_to(0, &pages, first).unwrap(), [Ok(first); PAGES]);
    let ring = Ring::new().expect("a ring");
    ring.register_buffer(&region, 3..5).expect("a buffer");
    let moved = move_to(0, &pages, second).unwrap();
    for (page, node) in moved.iter().enumerate() {
        let expected = match page {
            3 | 4 => Err(PageErrno(libc::EBUSY)),
            _ => Ok(second),
        };
        assert_eq!(*node, expected, "page {page}");
    }
    let now = nodes_of(0, &pages).unwrap();
    assert_eq!(now[2..6], [Ok(second), Ok(first), Ok(first), Ok(second)]);
    drop(ring);
    // The kernel lets go of them when it comes to it.
    let all_moved = || move_to(0, &pages, second).unwrap() == [Ok(second); PAGES];
    let deadline = Instant::now() + Duration::from_secs(60);
    while !all_moved() {
        assert!(Instant::now() < deadline, "pinned for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(loads(&region), [7; PAGES]);
}

#[test]
fn pages_that_no_list_of_the_kernel_has_cannot_be_moved() {
    let test = "pages_that_no_list_of_the_kernel_has_cannot_be_moved";
    let Some((first, second)) = two_nodes(test) else {
        return;
    };
    let ring = Ring::new().expect("a ring");
    let page = indices(&ring.rings, 0..1);
    let moved = [first, second].map(|node| move_to(0, &page, node).unwrap()[0]);
    // It lies on one of them, and cannot be moved to the other.
    assert!(moved.contains(&Err(PageErrno(libc::EBUSY))), "{moved:?}");
    assert_eq!(moved.iter().filter(|answer| answer.is_ok()).count(), 1);
}

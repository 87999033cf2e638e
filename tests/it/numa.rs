//! Prevents that memory lies on other nodes after a restore than its policies say: a machine with two nodes, as `make kernels`
//! emulates it, shows where each page was and is.

use pagetide_tests::{Frozen, Program, Steps, Subject, number, skipped};

/// Of each mapping with a policy: its address, the policy, and how many pages are on which node.
fn placed(frozen: &Frozen) -> Vec<String> {
    let path = format!("/proc/{}/numa_maps", frozen.pid());
    let text = std::fs::read_to_string(path).expect("its nodes");
    let placed = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (address, policy) = (words.next()?, words.next()?);
        let nodes: Vec<&str> = words.filter(|word| word.starts_with('N')).collect();
        (policy != "default").then(|| format!("{address} {policy} {}", nodes.join(" ")))
    });
    placed.collect()
}

#[test]
fn t82_each_page_is_on_the_node_where_its_policy_has_it() {
    let nodes = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    if nodes.trim() != "0-1" {
        return skipped(
            "t82_each_page_is_on_the_node_where_its_policy_has_it",
            "one NUMA node",
        );
    }
    // Bound to either, preferred on the second, interleaved over both.
    let mut subject = Subject::target("policies", &["2:1", "2:2", "1:2", "3:3"]);
    let mut steps = Steps::new(2);
    steps.goes_on(&subject);
    for _ in 0..2 {
        let report = subject.checkpoint(&["--leave", "stopped"]).remove(0);
        let frozen = Frozen::found(subject.pid());
        let before = placed(&frozen);
        std::mem::forget(frozen);
        let has = |what: &str| before.iter().any(|line| line.ends_with(what));
        assert_eq!(before.len(), 4, "{before:?}");
        assert!(has("bind:0 N0=16") && has("bind:1 N1=16"), "{before:?}");
        assert!(
            has("prefer:1 N1=16") && has("interleave:0-1 N0=8 N1=8"),
            "{before:?}"
        );
        println!("before: {before:#?}");
        subject.kill();
        subject.restore(&["--stopped", "--at", &number(&report, "id").to_string()]);
        let frozen = Frozen::found(subject.pid());
        let after = placed(&frozen);
        println!("after: {after:#?}");
        assert_eq!(after, before);
        drop(frozen);
        steps.goes_on(&subject);
    }
}

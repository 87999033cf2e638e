//! Prevents that what is printed for machines is not what docs/OUTPUT.schema.json promises.

use pagetide_tests::{Target, TestStore, pagetide};
use serde_json::Value;

fn schema() -> Value {
    let text = include_str!("../../docs/OUTPUT.schema.json");
    serde_json::from_str(text).expect("the schema is JSON")
}

/// True if the value is of this type of JSON Schema.
fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("a type that this test does not know: {name}"),
    }
}

/// What is wrong with a value: the part of JSON Schema that the page uses.
fn wrong(top: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/$defs/").expect("a definition");
        return wrong(top, &top["$defs"][name], value, place);
    }
    let mut found = Vec::new();
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !types.is_empty() && !types.iter().any(|name| is_of_type(value, name)) {
        found.push(format!("{place} is no {types:?}: {value}"));
    }
    if let Some(all) = schema["enum"].as_array()
        && !all.contains(value)
    {
        found.push(format!("{place} is none of {all:?}: {value}"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().expect("a name");
        if value.get(name).is_none() {
            found.push(format!("{place} has no {name}"));
        }
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(value) = value.get(name) {
            found.extend(wrong(top, schema, value, &format!("{place}.{name}")));
        }
    }
    if !schema["items"].is_null() {
        for item in value.as_array().into_iter().flatten() {
            found.extend(wrong(top, &schema["items"], item, &format!("{place}[]")));
        }
    }
    found
}

#[track_caller]
fn holds(name: &str, value: &Value) {
    let schema = schema();
    let definition = &schema["$defs"][name];
    assert!(definition.is_object(), "{name} is not in the schema");
    let wrong = wrong(&schema, definition, value, name);
    assert!(wrong.is_empty(), "{wrong:#?} in {value}");
}

#[test]
fn what_each_command_prints_is_what_the_schema_says() {
    let store = TestStore::new();
    let target = Target::start("bad_states", ["plain"]);
    let (path, pid) = (store.text(), target.pid_text());
    for line in pagetide(store.checkpoint_words(target.pid(), &["--every", "20ms", "--count", "3"]))
        .done()
        .lines()
    {
        holds("snapshot", &line);
        assert_eq!(line["pid"], target.pid(), "{line}");
    }
    let calls: [(&str, &[&str]); 12] = [
        ("log", &["log", &path]),
        ("show", &["show", &path]),
        ("diff", &["diff", &path, "1", "2"]),
        ("verify", &["verify", &path]),
        ("probe", &["probe"]),
        ("inspect", &["inspect", &pid]),
        ("pages", &["pages", &pid]),
        ("rollback", &["rollback", &pid, &path, "--at", "latest"]),
        ("detach", &["detach", &pid]),
        ("prune", &["squash", &path, "1..3"]),
        ("prune", &["prune", &path, "--keep-last", "1"]),
        ("log", &["log", &path]),
    ];
    for (name, call) in calls {
        holds(name, &pagetide([call, &["--json"]].concat()).done().json());
    }
}

#[test]
fn what_never_changes_is_told_once() {
    let store = TestStore::new();
    let target = Target::start("bad_states", ["plain"]);
    let words = store.checkpoint_words(target.pid(), &["--every", "20ms", "--count", "3"]);
    let lines = pagetide(words).done().lines();
    let of_kernel = |line: &Value| line["not_captured"].to_string().contains("[vvar]");
    assert!(of_kernel(&lines[0]), "{}", lines[0]);
    assert!(!lines[1..].iter().any(of_kernel), "{lines:#?}");
}

#[test]
fn errors_are_for_machines_too() {
    let store = TestStore::new();
    let outcome = pagetide(["log", &store.text(), "--json"]).exits_with(3);
    let last = outcome.stderr.lines().last().expect("a line");
    let value: Value = serde_json::from_str(last).expect("it is JSON");
    holds("error", &value);
    assert_eq!(value["exit_status"], 3, "{value}");
    let target = Target::start("bad_states", ["plain"]);
    let (path, pid) = (store.text(), target.pid_text());
    let call = [
        "checkpoint",
        &pid,
        "--store",
        &path,
        "--trust-store",
        "--json",
    ];
    let outcome = pagetide(call).done();
    for line in outcome.stderr.lines() {
        holds("note", &serde_json::from_str(line).expect("it is JSON"));
    }
    assert!(outcome.stderr.contains("--trust-store"), "{outcome:#?}");
}

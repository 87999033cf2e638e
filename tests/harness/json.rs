//! What answers in JSON say.

use serde_json::Value;

/// `value[name]` as a number, or a panic that shows the object.
pub fn number(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {name:?} in {value}"))
}

/// `value[name]` as text, or a panic that shows the object.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no text {name:?} in {value}"))
}

/// `value[name]` as a list, or a panic that shows the object.
pub fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name]
        .as_array()
        .unwrap_or_else(|| panic!("no list {name:?} in {value}"))
}

//! The log of a program that works in steps (`targets/steps.h`): each line begins with a number that counts up.

use crate::cycle::Program;
use crate::subject::Subject;
use std::collections::BTreeMap;

/// The file `log` of a program that is restored. After a restore the numbers go on where the snapshot was.
pub struct Steps {
    /// So many steps must be taken to show that it goes on.
    enough: u64,
    /// What each step must say after its number, if that is known.
    expected: Option<Vec<String>>,
    /// The last step at each mark.
    marks: BTreeMap<u32, u64>,
    /// The last step when all stood still.
    still: BTreeMap<u64, u64>,
    /// Where in the file the lines since the last restore begin.
    begin: usize,
    /// The last step before it was killed.
    last: u64,
}

impl Steps {
    /// Of a program that shows by this number of steps that it goes on.
    pub fn new(enough: u64) -> Self {
        Self {
            enough,
            expected: None,
            marks: BTreeMap::new(),
            still: BTreeMap::new(),
            begin: 0,
            last: 0,
        }
    }

    /// The lines that an uninterrupted run writes; step 1 is the first.
    #[must_use]
    pub fn expecting(mut self, lines: Vec<String>) -> Self {
        self.expected = Some(lines);
        self
    }

    /// The numbers of all lines since the last restore. All lines must be right, and in order.
    #[track_caller]
    fn numbers(&self, subject: &Subject) -> Vec<u64> {
        let text = std::fs::read_to_string(subject.path("log")).unwrap_or_default();
        let text = &text[self.begin..];
        let mut numbers: Vec<u64> = Vec::new();
        // The last line may not be complete.
        for line in text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let line = line.trim_end();
            let number = line.split(' ').next().and_then(|word| word.parse().ok());
            let number: u64 = number.unwrap_or_else(|| panic!("{line}; {}", subject.output()));
            if let Some(last) = numbers.last() {
                assert_eq!(number, last + 1, "after {last} comes {line:?}");
            }
            self.assert_expected(number, line);
            numbers.push(number);
        }
        numbers
    }

    #[track_caller]
    fn assert_expected(&self, number: u64, line: &str) {
        let Some(expected) = &self.expected else {
            return;
        };
        let index = usize::try_from(number).expect("a small number");
        if let Some(expected) = index.checked_sub(1).map(|at| expected.get(at)) {
            let expected = expected.unwrap_or_else(|| panic!("too few are known for {line:?}"));
            assert_eq!(line, expected);
        }
    }

    fn last(&self, subject: &Subject) -> u64 {
        self.numbers(subject).last().copied().unwrap_or(0)
    }
}

impl Program for Steps {
    fn goes_on(&mut self, subject: &Subject) {
        let now = self.last(subject);
        subject.wait_until("steps", || self.last(subject) >= now + self.enough);
    }

    fn mark(&mut self, subject: &Subject, mark: u32) {
        self.marks.insert(mark, self.last(subject));
    }

    fn stands_still(&mut self, subject: &Subject, id: u64) {
        self.still.insert(id, self.last(subject));
    }

    fn killed(&mut self, subject: &Subject, _id: u64) {
        self.last = self.last(subject);
        let text = std::fs::read_to_string(subject.path("log")).unwrap_or_default();
        assert!(text.ends_with('\n'), "it was killed while it wrote a line");
        self.begin = text.len();
    }

    fn restored(&mut self, subject: &Subject, id: u64, mark: u32) {
        subject.wait_until("a step", || !self.numbers(subject).is_empty());
        let first = self.numbers(subject)[0];
        let at_mark = self.marks[&mark];
        assert!(
            first > at_mark,
            "step {first} in snapshot {id}, and {at_mark} was taken before it"
        );
        assert!(
            first <= self.last + 1,
            "step {first}, and it was killed after {}",
            self.last
        );
        if let Some(last) = self.still.get(&id) {
            assert_eq!(first, last + 1, "snapshot {id}");
        }
    }
}

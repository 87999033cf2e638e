//! Questions to the kernel that only the thread itself can ask, put to it many at a time.
//!
//! Each answer is the result of a call and what it wrote. A call that the kernel does not know or refuses leaves no
//! answer; that the calls cannot be made at all is an error.

use crate::remote::RemoteCalls;
use crate::remote_error::RemoteCallError;
use crate::stop::StoppedProcess;
use pagetide_kernel::ptrace::ThreadId;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;

/// Most bytes for answers at a time. There has to be as much room below the stack pointer of the thread.
const BYTES_AT_ONCE: usize = 2048;

/// One call. It writes nothing but its answer.
#[derive(Clone, Debug)]
pub(super) struct Question {
    number: i64,
    args: [u64; 6],
    /// Which arguments are addresses, as offsets into the answer.
    pointers: Vec<(usize, u64)>,
    length_bytes: usize,
    /// That the kernel refuses it is an answer, too.
    asks_whether: bool,
    /// If seccomp does not let it pass, it has no answer, and the others are asked all the same.
    may_be_forbidden: bool,
}

/// The result of a call, and what it wrote.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) result: u64,
    bytes: Vec<u8>,
}

impl Question {
    /// A call that writes nothing.
    pub(super) fn number(number: i64, args: [u64; 6]) -> Self {
        Self {
            number,
            args,
            pointers: Vec::new(),
            length_bytes: 0,
            asks_whether: false,
            may_be_forbidden: false,
        }
    }

    /// A call that writes nothing, whose result is told as the kernel gave it: an error is a negative number. For threads
    /// that are asked together.
    pub(super) fn outcome((number, args): (i64, [u64; 6])) -> Self {
        Self {
            asks_whether: true,
            ..Self::number(number, args)
        }
    }

    /// A call that writes `length_bytes` to the address that is its argument `argument`, counted from 0.
    pub(super) fn bytes(number: i64, args: [u64; 6], argument: usize, length_bytes: usize) -> Self {
        Self {
            number,
            args,
            pointers: vec![(argument, 0)],
            length_bytes,
            asks_whether: false,
            may_be_forbidden: false,
        }
    }

    /// The same, but if seccomp does not let it pass, it has no answer, and the others are asked all the same.
    pub(super) fn that_may_be_forbidden(self) -> Self {
        Self {
            may_be_forbidden: true,
            ..self
        }
    }

    /// The same, but argument `argument` is the address of the byte `offset` of the answer, too.
    pub(super) fn and_pointer(mut self, argument: usize, offset: u64) -> Self {
        self.pointers.push((argument, offset));
        self
    }

    fn args_at(&self, address: u64) -> [u64; 6] {
        let mut args = self.args;
        for (argument, offset) in &self.pointers {
            args[*argument] = address + offset;
        }
        args
    }

    /// Answers begin at multiples of 16.
    fn room_bytes(&self) -> usize {
        self.length_bytes.next_multiple_of(16)
    }
}

impl Answer {
    /// Word `index` of 8 bytes of what was written; 0 behind the end.
    pub(super) fn word(&self, index: usize) -> u64 {
        self.part(index * 8).map_or(0, u64::from_le_bytes)
    }

    /// Word `index` of 4 bytes of what was written; 0 behind the end.
    pub(super) fn half(&self, index: usize) -> u32 {
        self.part(index * 4).map_or(0, u32::from_le_bytes)
    }

    fn part<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }
}

/// One a question; none: the kernel does not know the call, or refuses it.
pub(super) type Answers = Vec<Option<Answer>>;

/// What a thread told.
pub(super) type ThreadAnswers = Result<Answers, RemoteCallError>;

/// The answers of one thread.
pub(super) fn ask_one(
    stopped: &mut StoppedProcess,
    thread: ThreadId,
    questions: &[Question],
) -> ThreadAnswers {
    let mut calls = stopped.remote_calls_by(thread)?;
    let answers = ask(&mut calls, questions);
    let finished = calls.finish();
    let answers = answers?;
    finished.map(|()| answers)
}

/// Whether these can be put to a thread together with others.
pub(super) fn fit_at_once(questions: &[Question]) -> bool {
    length_of(questions) <= BYTES_AT_ONCE
}

/// What to ask whom.
pub(super) type ThreadQuestions = HashMap<ThreadId, Vec<Question>>;

/// The answers of many threads that are asked at the same time. The questions to each fit at once.
pub(super) fn ask_together(
    stopped: &mut StoppedProcess,
    asked: &Arc<ThreadQuestions>,
) -> Result<Vec<(ThreadId, ThreadAnswers)>, RemoteCallError> {
    let rooms = asked.iter().map(|(thread, all)| (*thread, length_of(all)));
    let rooms: Vec<(ThreadId, usize)> = rooms.collect();
    let threads: Vec<ThreadId> = rooms.iter().map(|(thread, _)| *thread).collect();
    let asked_there = Arc::clone(asked);
    let outcomes = stopped.call_in_all(rooms, move |thread, address| {
        calls_at(&asked_there[&thread], address)
    })?;
    let answered = threads.into_iter().zip(outcomes);
    let answered = answered.map(|(thread, outcome)| {
        let read = |(results, bytes): (Vec<Result<u64, Errno>>, Vec<u8>)| {
            let questions = &asked[&thread];
            let told = results.into_iter().zip(questions);
            let told = told.map(|(result, question)| match result {
                Err(errno) if question.asks_whether => {
                    Some(i64::from(-errno.raw_os_error()).cast_unsigned())
                }
                result => result.ok(),
            });
            answers(questions, told.collect(), &bytes)
        };
        (thread, outcome.map(read))
    });
    Ok(answered.collect())
}

fn length_of(questions: &[Question]) -> usize {
    questions.iter().map(Question::room_bytes).sum()
}

/// The answers, one a question.
fn ask(calls: &mut RemoteCalls<'_>, questions: &[Question]) -> Result<Answers, RemoteCallError> {
    let mut answers = Vec::with_capacity(questions.len());
    let mut rest = questions;
    while let Some(first) = rest.first() {
        if first.may_be_forbidden {
            let (now, later) = rest.split_at(1);
            match ask_at_once(calls, now) {
                Err(RemoteCallError::ForbiddenBySeccomp { .. }) => answers.push(None),
                told => answers.extend(told?),
            }
            rest = later;
            continue;
        }
        let mut room = 0;
        let count = rest
            .iter()
            .take_while(|question| !question.may_be_forbidden)
            .take_while(|question| {
                room += question.room_bytes();
                room <= BYTES_AT_ONCE
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at(count);
        answers.extend(ask_at_once(calls, now)?);
        rest = later;
    }
    Ok(answers)
}

fn ask_at_once(
    calls: &mut RemoteCalls<'_>,
    questions: &[Question],
) -> Result<Answers, RemoteCallError> {
    let length = length_of(questions);
    let mut bytes = vec![0; length];
    let results = calls.with_bytes(&bytes.clone(), |calls, address| {
        let results = calls.call_each(calls_at(questions, address))?;
        if length > 0 {
            calls.read(address, &mut bytes)?;
        }
        Ok(results)
    })?;
    Ok(answers(questions, results, &bytes))
}

/// The calls, if their answers go to `address` and behind.
fn calls_at(questions: &[Question], address: u64) -> Vec<(i64, [u64; 6])> {
    let mut place = address;
    let calls = questions.iter().map(|question| {
        let call = (question.number, question.args_at(place));
        place += u64::try_from(question.room_bytes()).unwrap_or(0);
        call
    });
    calls.collect()
}

fn answers(questions: &[Question], results: Vec<Option<u64>>, bytes: &[u8]) -> Answers {
    let mut rest = bytes;
    let answers = questions.iter().zip(results).map(|(question, result)| {
        let (here, later) = rest.split_at(question.room_bytes());
        rest = later;
        result.map(|result| Answer {
            result,
            bytes: here[..question.length_bytes].to_vec(),
        })
    });
    answers.collect()
}

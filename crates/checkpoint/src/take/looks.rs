//! How the advice of the mappings of all members becomes known in one stop: the looks at each before it, in it, and after it.

use super::window::WindowResult;
use crate::advice::{Budget, LastLook, Look};
use crate::member::Member;
use pagetide_kernel::maps::MappingFlags;
use std::collections::HashMap;

/// How the advice of all processes becomes known in one stop.
pub(crate) struct Looks {
    all: Vec<Look>,
    budget: Budget,
    /// As many mappings as any of them has.
    mappings: usize,
}

impl Looks {
    /// The looks before the stop after `stops` others for the same snapshot, at processes of which each has as many
    /// `mappings`.
    pub fn before(members: &mut [Member], mappings: &[usize], stops: usize) -> Self {
        let mut budget = Budget::after(stops);
        let looks = members.iter_mut().zip(mappings).map(|(member, &mappings)| {
            let pid = member.pid();
            member.last_look.before(pid, mappings, &mut budget)
        });
        Self {
            all: looks.collect(),
            budget,
            mappings: mappings.iter().copied().max().unwrap_or(0),
        }
    }

    /// All stand still: `others` run another program than before, and some were found only now.
    pub fn stopped(&mut self, members: &[Member], others: &[usize]) {
        let new = self.all.len()..members.len();
        for number in others.iter().copied().chain(new) {
            let pid = members[number].pid();
            let look = LastLook::none_before(pid, self.mappings, &mut self.budget);
            match self.all.get_mut(number) {
                Some(stale) => *stale = look,
                None => self.all.push(look),
            }
        }
    }

    /// Who is read in the stop, by its index among the members.
    pub fn inside(&self, members: &[Member]) -> Vec<(usize, i32)> {
        let all = self.all.iter().zip(members).enumerate();
        let inside = all.filter(|(_, (look, _))| matches!(look, Look::Inside));
        inside
            .map(|(number, (_, member))| (number, member.pid()))
            .collect()
    }

    /// Notes in each of the stopped what held. False if that cannot be told of all.
    pub fn after(
        &self,
        members: &mut [Member],
        inside: &HashMap<usize, MappingFlags>,
        stopped: &mut [Option<WindowResult>],
    ) -> bool {
        let mut told = true;
        let all = members.iter_mut().zip(stopped).zip(&self.all);
        for (number, ((member, stopped), look)) in all.enumerate() {
            let Some(stopped) = stopped else { continue };
            let (pid, mappings) = (member.pid(), &stopped.layout.mappings);
            let inside = inside.get(&number);
            let advice = member
                .last_look
                .after(pid, look, inside, mappings, &self.budget);
            told &= advice.is_some();
            stopped.advice = advice.unwrap_or_default();
        }
        told
    }
}

/// Reads what is needed of these. It is parsed when there is time.
pub(crate) fn read_all(processes: &[(usize, i32)]) -> HashMap<usize, MappingFlags> {
    let read = |&(number, pid): &(usize, i32)| Some((number, MappingFlags::read(pid).ok()?));
    processes.iter().filter_map(read).collect()
}

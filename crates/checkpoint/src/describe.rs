//! A stopped process as a snapshot describes it: the regions of its space, and what is missing from them.

use crate::files::{FileReport, Files};
use crate::layout::{self, FileDescription, Watch};
use crate::member::Member;
use crate::objects;
use crate::report::NotCaptured;
use crate::rings::AsynchronousIo;
use crate::sparse;
use crate::window::Stopped;
use pagetide_kernel::maps::Mapping;
use pagetide_snapshot::{Capture, Region};

/// To read them would be to allocate them.
const BPF_MEMORY_UNSEEN: &str =
    "pages of it that a BPF program may have used and the process has not are not seen";

impl Member {
    /// The regions, and what the snapshot does not hold.
    pub fn describe(
        &self,
        stopped: &Stopped,
        files: &mut Files,
        report: &FileReport,
        io: &AsynchronousIo,
    ) -> (Vec<Region>, Vec<NotCaptured>) {
        let pid = self.pid();
        let mut not_captured: Vec<NotCaptured> = io
            .devices
            .iter()
            .map(|name| NotCaptured {
                pid,
                start: 0,
                end: 0,
                name: name.clone(),
                reason: "what a device writes to memory by itself leaves no trace".to_owned(),
            })
            .collect();
        let mut regions = Vec::with_capacity(stopped.layout.mappings.len());
        for (mapping, watch) in stopped.layout.each() {
            let capture = match reason(mapping, watch, stopped) {
                None => Capture::Captured,
                Some(reason) => {
                    not_captured.push(NotCaptured {
                        pid,
                        start: mapping.start,
                        end: mapping.end,
                        name: layout::display_name(mapping),
                        reason: reason.to_owned(),
                    });
                    Capture::NotCaptured {
                        reason: reason.to_owned(),
                    }
                }
            };
            if sparse::is_bpf_memory(mapping) && !stopped.is_read_in_full(mapping.pages()) {
                not_captured.push(NotCaptured {
                    pid,
                    start: mapping.start,
                    end: mapping.end,
                    name: layout::display_name(mapping),
                    reason: BPF_MEMORY_UNSEEN.to_owned(),
                });
            }
            let about = match mapping.has_file() {
                true => FileDescription {
                    facts: report.facts(mapping),
                    build_id: files.build_id(mapping, report),
                },
                false => FileDescription::default(),
            };
            let shows = (watch == Watch::Object).then(|| objects::shown(mapping));
            let advice = stopped.advice.of(mapping);
            regions.push(layout::region(mapping, about, advice, capture, shows));
        }
        (regions, not_captured)
    }
}

/// Why a mapping is not captured, if it is not.
fn reason(mapping: &Mapping, watch: Watch, stopped: &Stopped) -> Option<&'static str> {
    match watch {
        Watch::Leave(reason) => Some(reason),
        _ if layout::is_device_like(mapping)
            && stopped.unreadable.contains_range(mapping.pages()) =>
        {
            Some("memory of a device or of the kernel, which cannot be read")
        }
        _ => None,
    }
}

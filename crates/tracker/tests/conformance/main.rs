//! Prevents: a backend that misses a way in which memory changes. Each scenario runs by each backend that
//! this kernel has; after each step, every page whose content is not what it was must be in the harvest.

mod calls;
mod faults;
mod layout;
mod reclaim;
mod settling;
mod stores;
mod world;

macro_rules! conformance {
    ($($group:ident: $($scenario:ident)+;)+) => {
        conformance!(@backend wp_async WpAsync $($($group $scenario)+)+);
        conformance!(@backend soft_dirty SoftDirty $($($group $scenario)+)+);
    };
    (@backend $module:ident $backend:ident $($group:ident $scenario:ident)+) => {
        mod $module {
            $(
                #[test]
                fn $scenario() {
                    let backend = pagetide_tracker::Backend::$backend;
                    super::world::run(backend, stringify!($scenario), super::$group::$scenario);
                }
            )+
        }
    };
}

conformance! {
    stores:
        a_store
        a_store_from_outside
        a_read_into_memory
        a_splice_into_memory
        a_private_copy_of_a_file
        a_child_changes_its_own_copy
        a_copy_after_fork;
    layout:
        a_fresh_mapping
        a_mapping_over_another
        a_mapping_that_merges_with_its_neighbour
        another_kind_of_mapping_that_holds_nothing
        moved_to_a_free_place
        moved_by_whole_page_tables
        moved_over_another_mapping
        moved_and_kept
        two_areas_change_places
        grown_in_place
        grown_elsewhere
        shrunk_and_grown_again
        permissions
        the_stack_grows
        the_break_moves
        remapped_file_pages
        memory_of_the_kernel
        large_parts_that_hold_nothing
        empty_parts_that_move;
    faults:
        dropped
        dropped_and_read
        dropped_with_its_page_table
        huge_pages_split
        huge_pages_collapse
        huge_pages_are_moved
        huge_pages_are_dropped_and_read
        huge_pages_of_hugetlbfs
        guards;
    reclaim:
        swapped_out_and_in
        dropped_while_in_swap
        moved_while_in_swap
        freed_and_reclaimed
        merged_pages;
    settling:
        given_back
        a_dropped_harvest
        over_and_over
        a_harvest_that_does_not_cover_all
        nothing_happens;
}

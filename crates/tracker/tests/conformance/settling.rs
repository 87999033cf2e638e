//! The two ends of a harvest, and harvests in a row.

use super::world::World;
use pagetide_testing::Region;

pub fn given_back(world: &mut World) {
    let region = world.settled(16, 1);
    region.store(3, 2);
    let _ = world.harvest().give_back();
    region.store(4, 2);
    world.expect(2);
    world.expect(0);
}

pub fn a_dropped_harvest(world: &mut World) {
    let region = world.settled(16, 1);
    region.store(3, 2);
    let harvest = world.harvest();
    region.replace(8..10);
    drop(harvest);
    world.expect(3);
}

pub fn over_and_over(world: &mut World) {
    let region = world.settled(16, 1);
    for page in 0..16 {
        region.store(page, 2);
        let _ = world.harvest().give_back();
    }
    world.expect(16);
    for page in 0..16 {
        region.store(page, 3);
        world.expect(1);
    }
}

pub fn a_harvest_that_does_not_cover_all(world: &mut World) {
    let (one, two) = (world.settled(8, 1), world.settled(8, 1));
    one.store(1, 2);
    two.store(2, 2);
    world.tracker.harvest(&[one.pages()]).unwrap().commit();
    one.store(1, 3);
    world.expect(2);
}

pub fn nothing_happens(world: &mut World) {
    let region: Region = world.settled(512, 1);
    let _ = world.reported();
    assert!(world.reported().is_empty());
    region.store(7, 2);
    assert_eq!(region.positions(&world.reported()), [7]);
    assert!(world.reported().is_empty());
}

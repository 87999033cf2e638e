//! Prevents that root opens for another user what that one may not, or what a path has been made to lead to.

use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

const OTHER: u32 = 65534;

fn other() -> Opener {
    let mut openers = Openers::default();
    let credentials = Credentials {
        uids: [OTHER; 4],
        gids: [OTHER; 4],
        ..Credentials::default()
    };
    openers.add(1, &credentials);
    openers.of(1).clone()
}

/// None if this is not run by root.
fn directory() -> Option<tempfile::TempDir> {
    let directory = tempfile::tempdir().expect("a directory");
    let open = Permissions::from_mode(0o777);
    fs::set_permissions(directory.path(), open).expect("open it to all");
    rustix::process::geteuid().is_root().then_some(directory)
}

fn private(path: &Path) -> FileIdentity {
    fs::write(path, "private").expect("write a file");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("close it");
    let metadata = fs::metadata(path).expect("look at it");
    FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

#[test]
fn what_the_user_may_not_open_is_opened_only_if_it_is_the_very_file() {
    let Some(directory) = directory() else { return };
    let path = directory.path().join("file");
    let was = private(&path);
    let opener = other();
    let open = |was| opener.find(&path, was)?.open(OFlags::RDWR);
    open(Some(was)).expect("it is the one");
    for was in [
        None,
        Some(FileIdentity {
            inode: was.inode + 1,
            ..was
        }),
    ] {
        let error = open(was).expect_err("another one");
        assert!(
            matches!(error, OpenError::NotTheirs { user: OTHER }),
            "{error}"
        );
    }
    // The same in a directory that the user cannot even look into.
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).expect("make a directory");
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).expect("close it");
    let path = closed.join("file");
    let was = private(&path);
    let open = |was| opener.find(&path, was)?.open(OFlags::RDWR);
    open(Some(was)).expect("it is the one");
    open(Some(FileIdentity { inode: 1, ..was })).expect_err("another one");
    open(None).expect_err("nobody knows which");
}

#[test]
fn only_links_that_root_or_the_user_made_are_followed() {
    let Some(directory) = directory() else { return };
    let real = directory.path().join("real");
    fs::create_dir(&real).expect("make a directory");
    fs::write(real.join("file"), "").expect("write a file");
    let link = directory.path().join("link");
    symlink(&real, &link).expect("make a link");
    let (path, opener) = (link.join("file"), other());
    for (owner, followed) in [(0, true), (OTHER, true), (1234, false)] {
        lchown(&link, Some(owner), None).expect("change the owner");
        let found = opener.find(&path, None);
        assert_eq!(found.is_ok(), followed, "{owner}");
        if let Err(error) = found {
            assert!(matches!(error, OpenError::Link { .. }), "{error}");
        }
    }
    // One at the end is what is found, and no relative path is looked up.
    let found = opener.find(&link, None).expect("a link");
    assert_eq!(found.kind(), FileType::Symlink);
    opener.find(Path::new("file"), None).expect_err("relative");
}

#[test]
fn what_is_allowed_is_where_a_path_leads() {
    let Some(directory) = directory() else { return };
    let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
    for place in [&inside, &outside] {
        fs::create_dir(place).expect("make a directory");
        fs::write(place.join("file"), "").expect("write a file");
    }
    symlink(&outside, inside.join("way")).expect("make a link");
    let opener = Openers::new(std::slice::from_ref(&inside)).of(1).clone();
    opener.find(&inside.join("file"), None).expect("inside");
    let error = opener
        .find(&inside.join("way/file"), None)
        .expect_err("outside");
    match error {
        OpenError::NotAllowed { resolved } => assert_eq!(resolved, outside.join("file")),
        error => panic!("{error}"),
    }
}

#[test]
fn a_file_is_made_and_removed_as_its_user() {
    let Some(directory) = directory() else { return };
    let opener = other();
    let path = directory.path().join("new");
    let created = opener.create(&path).expect("make a file");
    assert_eq!(fs::metadata(&path).expect("look at it").uid(), OTHER);
    opener.create(&path).expect_err("it is there");
    // Another file that has come to its name is left alone.
    let aside = directory.path().join("aside");
    fs::rename(&path, &aside).expect("move it away");
    fs::write(&path, "another").expect("write a file");
    created.name.remove();
    assert_eq!(fs::read(&path).expect("read it"), b"another");
    fs::rename(&aside, &path).expect("move it back");
    created.name.remove();
    assert!(!path.exists());
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).expect("make a directory");
    opener
        .create(&closed.join("new"))
        .expect_err("it is root's");
    opener
        .create_nameless(&closed, true)
        .expect_err("it is root's");
    let file = opener
        .create_nameless(directory.path(), false)
        .expect("a file");
    let stat = fstat(&file).expect("look at it");
    assert_eq!((stat.st_uid, stat.st_nlink), (OTHER, 0));
}

//! What end-to-end tests share: building and starting targets, running `pagetide`, ground truth.

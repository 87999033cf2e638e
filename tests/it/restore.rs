//! Restores: programs that are checkpointed, killed and started again, see the modules.

mod mechanisms;

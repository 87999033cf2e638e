//! Restores: programs that are checkpointed, killed and started again, see the modules.

mod command;
mod descriptors;
mod interpreters;
mod mechanisms;
mod servers;

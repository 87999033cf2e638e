//! Restores: programs that are checkpointed, killed and started again, see the modules.

mod clocks;
mod command;
mod database_server;
mod descriptors;
mod droppable;
mod halted;
mod interpreters;
mod mechanisms;
mod memory_attributes;
mod objects;
mod servers;
mod trees;

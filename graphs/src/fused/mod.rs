//! Functions that `vldm-optimize` writes in the place of groups of operators, one kernel each in our engines. Their
//! bodies are the operators that they replace, so that every engine runs the file.

mod attention;
mod linear;

pub use attention::{ATTENTION, attention};
pub use linear::{LINEARS, Linear, linear};

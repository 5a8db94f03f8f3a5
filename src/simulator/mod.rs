//! temp
#[derive(Debug, Default, serde::Deserialize)]
pub struct SimulatorSettings {}

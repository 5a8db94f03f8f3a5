use super::{Failure, args::Demo};
pub(crate) async fn demo(_: Demo) -> Result<(), Failure> {
    Err(Failure::internal("later"))
}

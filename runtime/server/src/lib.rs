//! Videos over HTTP: jobs that outlive the process, the Videos API, the Open Inference Protocol and a web page.

pub mod kserve;

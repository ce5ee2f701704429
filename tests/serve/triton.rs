//! The real `tritonclient`: health, metadata and inference of a part, with tensors as JSON and as bytes.

use vldm_tests::python;

use super::{Server, plan};

const SCRIPT: &str = r#"
import sys
import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

client = http.InferenceServerClient(sys.argv[1], network_timeout=120)
assert client.is_server_live() and client.is_server_ready()
assert {m["name"] for m in client.get_model_repository_index()} >= {"tiny.keyframes", "tiny.image_decoder"}
name = "tiny.image_decoder"
assert client.is_model_ready(name)
about = client.get_model_metadata(name)
(x,), (y,) = about["inputs"], about["outputs"]
assert (x["datatype"], y["datatype"]) == ("FP32", "FP32"), about
shape = [2 if n == -1 else n for n in x["shape"]]
numbers = np.random.default_rng(3).standard_normal(shape).astype(np.float32)

def ask(binary, numbers=numbers, name=name):
    given = http.InferInput(x["name"], list(numbers.shape), "FP32")
    given.set_data_from_numpy(numbers, binary_data=binary)
    wanted = http.InferRequestedOutput(y["name"], binary_data=binary)
    return client.infer(name, [given], outputs=[wanted], request_id="7")

plain, packed = ask(False), ask(True)
assert plain.get_response()["id"] == packed.get_response()["id"] == "7"
plain, packed = plain.as_numpy(y["name"]), packed.as_numpy(y["name"])
assert packed.shape == plain.shape and [n in (-1, m) for n, m in zip(y["shape"], packed.shape)].count(False) == 0, packed.shape
assert np.isfinite(packed).all() and packed.std() > 0
assert (plain == packed).all(), "numbers are as exact in text as in bytes"
assert np.abs(ask(True, numbers[:1]).as_numpy(y["name"]) - packed[:1]).max() <= 1e-5 * np.abs(packed).max()
counts = client.get_inference_statistics(name)["model_stats"][0]["inference_stats"]["success"]["count"]
assert counts == 3, counts
for wrong in [dict(name="tiny.nothing"), dict(numbers=numbers[0])]:
    try:
        ask(True, **wrong)
        raise AssertionError("it was answered")
    except InferenceServerException as error:
        assert error.status() in ("400", "404"), error
"#;

#[test]
fn tritonclient_asks_for_health_and_metadata_and_infers_in_text_and_in_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 3);
    let server = Server::start(scratch.path(), &plan, &[]);
    python::client("tritonclient[http]==2.73.0", SCRIPT, &server.address);
}

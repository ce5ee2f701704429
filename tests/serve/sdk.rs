//! The real `openai` SDK: the methods of its videos.

use vldm_tests::python;

use super::{Server, plan};

const SCRIPT: &str = r#"
import sys, warnings
warnings.simplefilter("ignore")
import openai

client = openai.OpenAI(base_url=f"http://{sys.argv[1]}/v1", api_key="none", max_retries=0)
videos = client.videos
made = videos.create_and_poll(prompt="", model="tiny", seconds="4", timeout=120)
assert made.status == "completed" and made.progress == 100 and made.error is None, made
assert float(made.seconds) >= 4, made
again = videos.retrieve(made.id)
assert (again.id, again.object, again.size) == (made.id, "video", made.size), again
body = videos.download_content(made.id).read()
assert body[4:8] == b"ftyp", body[:16]
assert videos.download_content(made.id, variant="thumbnail").read()[:4] == b"\x89PNG"
with videos.with_streaming_response.download_content(made.id) as response:
    assert b"".join(response.iter_bytes()) == body
remix = videos.remix(made.id, prompt="")
assert remix.remixed_from_video_id == made.id, remix
# The method `extend` of this version cannot send an id: its body is made by hand.
longer = client.post("/videos/extensions", body={"seconds": "4", "video": {"id": made.id}}, cast_to=openai.types.Video)
longer = videos.poll(longer.id)
assert longer.status == "completed" and float(longer.seconds) >= float(made.seconds) + 4, longer
assert [v.id for v in videos.list(limit=1, order="asc")] == [made.id, remix.id, longer.id]
for call in [lambda: videos.edit(prompt="x", video=b"x"), lambda: videos.create_character(name="x", video=b"x"), lambda: videos.get_character("x")]:
    try:
        call()
        raise AssertionError("it is not supported")
    except openai.APIStatusError as error:
        assert error.status_code == 501 and error.code == "not_supported", error
try:
    videos.create(prompt="x", model="none")
    raise AssertionError("there is no such model")
except openai.NotFoundError as error:
    assert error.code == "model_not_found" and error.param == "model", error
videos.poll(remix.id)
assert videos.delete(remix.id).deleted
try:
    videos.retrieve(remix.id)
    raise AssertionError("it is gone")
except openai.NotFoundError as error:
    assert error.code == "video_not_found", error
"#;

#[test]
fn the_openai_sdk_makes_polls_downloads_remixes_continues_lists_and_deletes_videos() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 3);
    let server = Server::start(scratch.path(), &plan, &[]);
    python::client("openai==3.54.0", SCRIPT, &server.address);
}

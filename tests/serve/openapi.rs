//! `GET /openapi.json` against the routes in the source, the methods that a server takes, and what it answers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vldm_tests::python;

use super::http::Server;
use super::{ended, id, plan};

/// Validates the document itself, then every answer against the schema that the document has for its path, method and
/// status.
const CHECK: &str = r##"
import json, sys
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from openapi_schema_validator import OAS31Validator

job = json.loads(open(sys.argv[1]).read())
spec = job["spec"]
validate(spec, cls=OpenAPIV31SpecValidator)
for answer in job["answers"]:
    found = spec["paths"][answer["path"]][answer["method"]]["responses"]
    response = found.get(str(answer["status"]), found.get("default"))
    assert response, (answer["path"], answer["status"])
    if "$ref" in response:
        response = spec["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
    schema = {**response["content"]["application/json"]["schema"], "components": spec["components"]}
    errors = [e.message for e in OAS31Validator(schema).iter_errors(answer["body"])]
    assert not errors, (answer["method"], answer["path"], answer["status"], errors)
for name, ask, good in job["requests"]:
    schema = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
    assert OAS31Validator(schema).is_valid(ask) == good, (name, ask)
"##;

/// Paths of all routes in a folder of sources; routes of a nested router come after each prefix it is nested at.
fn routes(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            routes(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let all = |call: &str| -> Vec<String> {
                text.split(call).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
            };
            let (prefixes, served) = (all(".nest(\""), all(".route(\""));
            for route in served {
                let absolute = ["/v", "/health", "/metrics", "/openapi"].iter().any(|start| route.starts_with(start));
                // Below a prefix: a router of paths for one model.
                let below = !absolute && !prefixes.is_empty();
                assert!(absolute || below, "{}: {route}", path.display());
                let places = if absolute { &[String::new()][..] } else { &prefixes };
                found.extend(places.iter().map(|prefix| format!("{prefix}{route}").trim_end_matches('/').to_owned()));
            }
        }
    }
}

#[test]
fn the_description_names_the_paths_methods_and_answers_of_the_server() {
    let scratch = tempfile::tempdir().unwrap();
    let plan = plan(scratch.path(), 1);
    let server = Server::start(scratch.path(), &plan, &[]);
    let spec = server.get("/openapi.json").expect(200).json();
    assert_eq!(spec["info"]["version"], env!("CARGO_PKG_VERSION"));
    let paths = spec["paths"].as_object().unwrap();
    let mut served = BTreeSet::new();
    routes(&vldm_tests::root().join("runtime/server/src"), &mut served);
    // What answers that nothing is there.
    assert!(served.remove("/v2/{*rest}"));
    assert_eq!(paths.keys().cloned().collect::<BTreeSet<_>>(), served);
    for (path, item) in paths {
        let real = path.replace("{model}", "tiny.keyframes").replace("{version}", "1").replace(['{', '}'], "");
        let refused = server.send("PATCH", &real, &[], b"").expect(405);
        let allowed = refused.header("allow").unwrap_or_default().to_ascii_lowercase();
        let allowed: BTreeSet<&str> = allowed.split(',').filter(|m| *m != "head").collect();
        let said: BTreeSet<&str> =
            item.as_object().unwrap().keys().map(String::as_str).filter(|k| *k != "parameters").collect();
        assert_eq!(said, allowed, "{path}");
    }
    let file = scratch.path().join("job.json");
    let job = json!({"spec": spec, "answers": answers(&server), "requests": requests()});
    fs::write(&file, job.to_string()).unwrap();
    python::client("openapi-spec-validator==0.9.0", CHECK, file.to_str().unwrap());
}

/// Answers of the server to one request of each kind, good and bad.
fn answers(server: &Server) -> Vec<Value> {
    let mut all = Vec::new();
    let mut ask = |method: &str, path: &str, real: &str, body: &Value| {
        let body = if method == "post" { body.to_string() } else { String::new() };
        let headers = ["Content-Type: application/json"];
        let answer = server.send(&method.to_uppercase(), real, &headers, body.as_bytes());
        all.push(json!({"method": method, "path": path, "status": answer.status, "body": answer.json()}));
        answer
    };
    let none = Value::Null;
    let video = id(&ask("post", "/v1/videos", "/v1/videos", &json!({})));
    ask("post", "/v1/videos", "/v1/videos", &json!({"colour": "red"}));
    ask("get", "/v1/videos", "/v1/videos", &none);
    ask("get", "/v1/videos", "/v1/videos?limit=0", &none);
    ended(server, &video);
    ask("get", "/v1/videos/{id}", &format!("/v1/videos/{video}"), &none);
    ask("get", "/v1/videos/{id}", "/v1/videos/none", &none);
    ask("post", "/v1/videos/{id}/remix", &format!("/v1/videos/{video}/remix"), &json!({"seed": 2}));
    let more = json!({"video": {"id": video}});
    let more = id(&ask("post", "/v1/videos/extensions", "/v1/videos/extensions", &more));
    ask("post", "/v1/videos/{id}/cancel", &format!("/v1/videos/{more}/cancel"), &none);
    ask("post", "/v1/videos/{id}/cancel", &format!("/v1/videos/{video}/cancel"), &none);
    ask("get", "/v1/videos", "/v1/videos", &none);
    ask("delete", "/v1/videos/{id}", &format!("/v1/videos/{video}"), &none);
    for path in ["/v1/videos/edits", "/v1/videos/characters"] {
        ask("post", path, path, &none);
    }
    ask("get", "/v1/videos/characters/{id}", "/v1/videos/characters/x", &none);
    for path in ["/v1/models", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"] {
        ask("get", path, path, &none);
    }
    ask("get", "/v1/models/{name}", "/v1/models/tiny", &none);
    ask("get", "/v1/models/{name}", "/v1/models/none", &none);
    ask("post", "/v2/repository/index", "/v2/repository/index", &json!({}));
    for path in ["", "/ready", "/config", "/stats"] {
        ask("get", &format!("/v2/models/{{model}}{path}"), &format!("/v2/models/tiny.keyframes{path}"), &none);
    }
    let versioned = "/v2/models/{model}/versions/{version}";
    ask("get", versioned, "/v2/models/tiny.keyframes/versions/7", &none);
    let inputs = server.get("/v2/models/tiny.image_decoder").json()["inputs"].clone();
    let shape: Vec<u64> = inputs[0]["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap_or(2)).collect();
    let data = vec![0.5; usize::try_from(shape.iter().product::<u64>()).unwrap()];
    let tensor = json!({"name": inputs[0]["name"], "shape": shape, "datatype": "FP32", "data": data});
    let infer = ("/v2/models/{model}/infer", "/v2/models/tiny.image_decoder/infer");
    assert_eq!(ask("post", infer.0, infer.1, &json!({"id": "7", "inputs": [tensor]})).status, 200);
    ask("post", infer.0, infer.1, &json!({"inputs": []}));
    all
}

/// Requests, and whether the description allows them: as the server does.
fn requests() -> Value {
    json!([
        ["CreateVideo", {}, true],
        ["CreateVideo", {"prompt": "", "labels": {"night": 1, "crowd": null}, "seed": 3, "seconds": "4"}, true],
        ["CreateVideo", {"labels": "{\"night\": 1}", "scenario": [{"labels": {"night": 0}}, {}]}, true],
        ["CreateVideo", {"input_reference": {"image_url": "data:image/png;base64,AA"}}, true],
        ["CreateVideo", {"image_path": "/etc/passwd"}, false],
        ["ExtendVideo", {"video": {"id": "x"}, "seconds": 4}, true],
        ["ExtendVideo", {"seconds": 4}, false],
        ["ExtendVideo", {"video": "x", "size": "64x32"}, false],
    ])
}

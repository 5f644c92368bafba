package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	volant "github.com/volant-edge/volant"
)

// refused are the parts of a machine's config that mean something which no machine does here, and what to do
// instead. What they say to Fly's clients would not come true in silence.
var refused = map[string]string{
	"mounts":      "leave it out: there are no volumes yet",
	"containers":  "run one image per machine",
	"processes":   "run one process per machine: a machine for each, with init.cmd",
	"statics":     "serve the files from the app",
	"standbys":    "leave it out: there is one server",
	"volumes":     "leave it out: there are no volumes yet",
	"cache_drive": "leave it out: there are no cache drives",
	"spot":        "leave it out: there is no spot price",
}

// refusedIn are those one level down.
var refusedIn = map[string]map[string]string{
	"guest": {
		"gpus": "leave it out: machines have no GPUs", "gpu_kind": "leave it out: machines have no GPUs",
		"kernel_args": "leave it out: the kernel is the platform's", "host_dedication_id": "leave it out: hosts are not dedicated",
	},
	"init": {
		"swap_size_mb": "leave it out: machines have no swap, give them more memory_mb",
		"kernel_args":  "leave it out: the kernel is the platform's",
		"tty":          "leave it out: there are no terminals",
	},
	"restart": {"gpu_bid_price": "leave it out: there is no spot price"},
	"rootfs":  {"size_gb": "leave it out: the writable disk has its own bound"},
}

// rootfs.persist says when the writable disk is kept; machines here begin with a fresh one at each cold start.
const persistNever = `"never"`

// decodeConfig reads a machine's config. Parts we do not act on are errors that name them, unless they ask for
// nothing; what only tells clients something is let through.
func decodeConfig(raw json.RawMessage) (volant.MachineConfig, error) {
	var cfg volant.MachineConfig
	parts := map[string]json.RawMessage{}
	if len(raw) == 0 || string(raw) == "null" {
		return cfg, volant.Invalidf("config is missing").WithRemedy("send at least config.image")
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return cfg, volant.Invalidf("config is no JSON object: %v", err)
	}
	if err := checkServed("config.", parts, refused); err != nil {
		return cfg, err
	}
	for _, name := range slices.Sorted(maps.Keys(refusedIn)) {
		inner := map[string]json.RawMessage{}
		if v := parts[name]; len(v) > 0 && json.Unmarshal(v, &inner) == nil {
			if err := checkServed("config."+name+".", inner, refusedIn[name]); err != nil {
				return cfg, err
			}
		}
		if p := inner["persist"]; name == "rootfs" && !asksNothing(p) && string(p) != persistNever {
			return cfg, volant.Invalidf("config.rootfs.persist %s is not served", p).WithRemedy("use never: a machine that starts cold begins with its image")
		}
	}
	if err := json.Unmarshal(raw, &cfg); err != nil {
		var kind *volant.Error
		if errors.As(err, &kind) {
			return cfg, kind
		}
		return cfg, volant.Invalidf("config is not of the form expected: %v", err)
	}
	if cfg.Image == "" {
		return cfg, volant.Invalidf("config.image is missing").WithRemedy("name the image to run")
	}
	return cfg, nil
}

func checkServed(path string, parts map[string]json.RawMessage, not map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(not)) {
		if v, ok := parts[name]; ok && !asksNothing(v) {
			return volant.Invalidf("%s%s is not served", path, name).WithRemedy("%s", not[name])
		}
	}
	return nil
}

// asksNothing says whether a JSON value is one of those that clients send for nothing.
func asksNothing(v json.RawMessage) bool {
	switch string(bytes.TrimSpace(v)) {
	case "", "null", "false", "0", `""`, "[]", "{}":
		return true
	}
	return false
}

// mergePatch applies an RFC 7396 merge patch: null removes, objects are merged, all else is replaced.
func mergePatch(doc, patch json.RawMessage) (json.RawMessage, error) {
	var changes map[string]json.RawMessage
	if err := json.Unmarshal(patch, &changes); err != nil || changes == nil {
		return patch, nil //nolint:nilerr // no object: it replaces what was there
	}
	have := map[string]json.RawMessage{}
	// What is no object is replaced by one.
	if err := json.Unmarshal(doc, &have); err != nil || have == nil {
		have = map[string]json.RawMessage{}
	}
	for k, v := range changes {
		if string(bytes.TrimSpace(v)) == "null" {
			delete(have, k)
			continue
		}
		merged, err := mergePatch(have[k], v)
		if err != nil {
			return nil, err
		}
		have[k] = merged
	}
	return json.Marshal(have)
}

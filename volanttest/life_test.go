package volanttest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

// TestMachinesKeepTheRulesOfTheirLife drives random calls, right and wrong ones, and compares what comes back with
// a model of the rules: which call is granted in which state, what a lease holds off, what changes the version,
// and that a destroyed machine stays readable and destroyed. VOLANT_SEED=N repeats one run.
func TestMachinesKeepTheRulesOfTheirLife(t *testing.T) {
	seeds := []uint64{1, 2, uint64(time.Now().UnixNano())}
	steps := 250
	if testing.Short() {
		seeds, steps = seeds[1:], 120
	}
	if s := os.Getenv("VOLANT_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{n}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := volanttest.New(t)
				defer p.Close()
				f := &fuzzer{t: t, h: p.Handler(), token: p.Token(), r: rand.New(rand.NewPCG(seed, 0)), machines: map[string]*life{}}
				f.want("POST", "/v1/apps", `{"app_name":"web","org_slug":"personal"}`, nil, 201)
				f.want("PATCH", "/v1/apps/web/scale", `{"on_idle":"off"}`, nil, 200) // nothing sleeps but when it is asked to
				for range steps {
					f.step()
					if t.Failed() {
						t.Logf("repeat with VOLANT_SEED=%d; the calls were:\n%s", seed, strings.Join(f.history[max(0, len(f.history)-25):], "\n"))
						return
					}
				}
				if len(f.destroyed()) == 0 || len(f.machines) < 5 || f.granted < steps/4 || f.refused < steps/8 {
					t.Errorf("%d machines, %d destroyed, %d calls granted, %d refused: this run tried too little", len(f.machines), len(f.destroyed()), f.granted, f.refused)
				}
			})
		})
	}
}

// life is what the model knows of a machine.
type life struct {
	id, name, version string
	state             string // once calm
	cordoned          bool
	metadata          map[string]string
	nonce             string // of the last lease
	leased            time.Time
}

func (l *life) held() bool { return time.Now().Before(l.leased) }

func (l *life) awake() bool { return l.state == "started" }

// fuzzer is a client and its model.
type fuzzer struct {
	t                *testing.T
	h                http.Handler
	token            string
	r                *rand.Rand
	machines         map[string]*life
	order            []string // their IDs, the oldest first
	made             int
	history          []string
	granted, refused int
}

func (f *fuzzer) call(method, path, body string, header map[string]string) (int, []byte) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+f.token)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	rec := newRecorder()
	f.h.ServeHTTP(rec, req)
	if method != "GET" {
		f.history = append(f.history, fmt.Sprintf("%s %s %s %v → %d %.300s", method, path, body, header, rec.code, strings.TrimSpace(rec.body.String())))
	}
	switch {
	case rec.code >= 500:
		f.t.Errorf("%s %s %s: %d %s", method, path, body, rec.code, rec.body.String())
	case rec.code >= 300:
		f.refused++
	default:
		f.granted++
	}
	return rec.code, []byte(rec.body.String())
}

type recorder struct {
	head http.Header
	code int
	body strings.Builder
}

func newRecorder() *recorder                          { return &recorder{head: http.Header{}, code: 200} }
func (r *recorder) Header() http.Header               { return r.head }
func (r *recorder) WriteHeader(code int)              { r.code = code }
func (r *recorder) Write(b []byte) (int, error)       { return r.body.Write(b) }
func (r *recorder) WriteString(s string) (int, error) { return io.WriteString(&r.body, s) }

// want calls, and fails unless the status is one of those allowed.
func (f *fuzzer) want(method, path, body string, header map[string]string, allowed ...int) (int, []byte) {
	f.t.Helper()
	code, b := f.call(method, path, body, header)
	if !slices.Contains(allowed, code) {
		f.t.Errorf("%s %s %s: %d %s, want %v", method, path, body, code, b, allowed)
	}
	return code, b
}

func (f *fuzzer) pick() *life {
	ids := f.order // not by ID: a seed repeats the run
	if len(ids) == 0 {
		return nil
	}
	alive := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return f.machines[id].state == "destroyed" })
	if len(alive) > 0 && f.r.IntN(8) > 0 {
		ids = alive
	}
	return f.machines[ids[f.r.IntN(len(ids))]]
}

func (f *fuzzer) destroyed() (out []*life) {
	for _, l := range f.machines {
		if l.state == "destroyed" {
			out = append(out, l)
		}
	}
	return out
}

const web = "/v1/apps/web/machines"

func (f *fuzzer) step() {
	l := f.pick()
	if l == nil || len(f.machines)-len(f.destroyed()) < 6 && f.r.IntN(5) == 0 {
		f.create()
		return
	}
	[]func(*life){f.act, f.act, f.act, f.act, f.lease, f.lease, f.metadata, f.update, f.update, f.destroy, f.cordon, f.wait, f.exec, f.nonsense, f.createBadly}[f.r.IntN(15)](l)
	time.Sleep(time.Duration(f.r.IntN(4)) * 5 * time.Second)
	f.check()
}

func (f *fuzzer) config(service bool) string {
	services := ""
	if service {
		services = `,"services":[{"protocol":"tcp","internal_port":8080,"ports":[{"port":80}],"autostop":"off"}]`
	}
	return fmt.Sprintf(`{"image":%q,"restart":{"policy":"no"},"metadata":{"born":"%d"}%s}`, string(volanttest.Image), f.made, services)
}

func (f *fuzzer) create() {
	f.made++
	l := &life{name: fmt.Sprintf("m%d", f.made), state: "started", metadata: map[string]string{"born": fmt.Sprint(f.made)}}
	more := ""
	if f.r.IntN(3) == 0 {
		more = `,"skip_launch":true`
		l.state = "stopped"
	}
	if f.r.IntN(4) == 0 {
		more += `,"skip_service_registration":true`
		l.cordoned = true
	}
	ttl := 0
	if f.r.IntN(5) == 0 {
		ttl = 20
		more += `,"lease_ttl":20`
	}
	_, b := f.want("POST", web, fmt.Sprintf(`{"name":%q,"config":%s%s}`, l.name, f.config(f.r.IntN(2) == 0), more), nil, 200)
	var m api.Machine
	if err := json.Unmarshal(b, &m); err != nil {
		f.t.Fatal(err)
	}
	l.id, l.version = m.ID, m.Version
	if (m.Nonce != "") != (ttl > 0) {
		f.t.Errorf("machine %s made with a lease of %d s has the nonce %q", m.ID, ttl, m.Nonce)
	}
	if ttl > 0 {
		l.nonce, l.leased = m.Nonce, time.Now().Add(time.Duration(ttl)*time.Second)
	}
	f.add(l)
}

func (f *fuzzer) add(l *life) {
	f.machines[l.id] = l
	f.order = append(f.order, l.id)
	f.calm(l)
}

func (f *fuzzer) createBadly(l *life) {
	for _, c := range []struct {
		body string
		want []int
	}{
		{`{`, []int{400}},
		{`{"config":{}}`, []int{400}},
		{`{"config":{"image":"no such image!"}}`, []int{400, 404}},
		{fmt.Sprintf(`{"config":{"image":%q,"mounts":[{"volume":"v","path":"/x"}]}}`, string(volanttest.Image)), []int{400}},
		{fmt.Sprintf(`{"config":{"image":%q,"guest":{"cpus":3}}}`, string(volanttest.Image)), []int{400}},
		{fmt.Sprintf(`{"config":{"image":%q},"region":"nowhere"}`, string(volanttest.Image)), []int{422, 400}},
		{fmt.Sprintf(`{"name":%q,"config":{"image":%q},"skip_launch":true}`, l.name, string(volanttest.Image)), map[bool][]int{true: {200}, false: {422}}[l.state == "destroyed"]},
	} {
		code, b := f.want("POST", web, c.body, nil, c.want...)
		var m api.Machine
		if code == 200 && json.Unmarshal(b, &m) == nil { // the name of a destroyed machine is free
			f.add(&life{id: m.ID, name: m.Name, version: m.Version, state: "stopped", metadata: map[string]string{}})
		}
	}
}

// refusal is the status that holds off a change of l whatever it is, or 0; with a nonce that is right or wrong.
func (f *fuzzer) refusal(l *life) (int, map[string]string) {
	nonce := map[string]string{}
	right := false
	switch f.r.IntN(4) {
	case 0:
		nonce["fly-machine-lease-nonce"] = "0123456789abcdef0123456789abcdef"
	case 1, 2:
		if l.held() {
			nonce["fly-machine-lease-nonce"], right = l.nonce, true
		}
	}
	switch {
	case l.state == "destroyed":
		return http.StatusPreconditionFailed, nil
	case l.held() && !right, !l.held() && nonce["fly-machine-lease-nonce"] != "":
		return http.StatusConflict, nonce
	}
	return 0, nonce
}

// act starts, stops, suspends, restarts and signals.
func (f *fuzzer) act(l *life) {
	what := []string{"start", "stop", "suspend", "restart", "signal"}[f.r.IntN(5)]
	body := ""
	if what == "signal" {
		body = []string{`{"signal":"SIGUSR1"}`, `{"signal":10}`, `{"signal":"SIGNOPE"}`}[f.r.IntN(3)]
	}
	no, header := f.refusal(l)
	allowed, next := f.outcome(l, what)
	if strings.Contains(body, "NOPE") {
		no, allowed = 0, []int{400, 409, 412}
	}
	if no != 0 {
		allowed = []int{no}
	}
	code, b := f.want("POST", web+"/"+l.id+"/"+what, body, header, allowed...)
	if code != 200 {
		return
	}
	var a api.Acted
	if json.Unmarshal(b, &a) == nil && a.PreviousState != l.state {
		f.t.Errorf("%s of machine %s says that it was %s, the model has %s", what, l.id, a.PreviousState, l.state)
	}
	l.state = next
	f.calm(l)
}

// outcome is what a call in the machine's state may answer, and the state it leads to when granted.
func (f *fuzzer) outcome(l *life, what string) (allowed []int, next string) {
	switch {
	case what == "start":
		return []int{200}, "started"
	case what == "stop":
		return []int{200}, "stopped"
	case what == "suspend" && l.awake():
		return []int{200}, "suspended"
	case what == "suspend" && l.state == "suspended":
		return []int{200}, "suspended"
	case what == "restart" && l.awake():
		return []int{200}, "started"
	case what == "restart":
		return []int{412}, l.state
	case what == "signal" && l.awake():
		return []int{200}, "started"
	}
	return []int{412}, l.state
}

func (f *fuzzer) lease(l *life) {
	path := web + "/" + l.id + "/lease"
	switch f.r.IntN(4) {
	case 0:
		want := 404
		if l.held() {
			want = 200
		}
		_, b := f.want("GET", path, "", nil, want)
		if l.nonce != "" && strings.Contains(string(b), l.nonce) {
			f.t.Errorf("the lease of machine %s shows its nonce: %s", l.id, b)
		}
	case 1:
		no, header := f.refusal(l)
		want := 200
		switch {
		case !l.held():
			want = 404
		case no != 0:
			want = no
		}
		if code, _ := f.want("DELETE", path, "", header, want); code == 200 {
			l.leased = time.Time{}
		}
	default:
		no, header := f.refusal(l)
		allowed := []int{200, 201}
		if no != 0 {
			allowed = []int{no}
		}
		ttl := 5 + f.r.IntN(30)
		body, q := fmt.Sprintf(`{"ttl":%d,"description":"a test"}`, ttl), ""
		if f.r.IntN(2) == 0 {
			body, q = "", fmt.Sprintf("?ttl=%d", ttl)
		}
		code, b := f.want("POST", path+q, body, header, allowed...)
		if code > 201 {
			return
		}
		var got api.Lease
		if err := json.Unmarshal(b, &got); err != nil || got.Nonce == "" || got.Data.Nonce != got.Nonce {
			f.t.Errorf("a lease that was taken: %s (%v)", b, err)
		}
		if l.held() && got.Nonce != l.nonce {
			f.t.Errorf("renewing the lease of machine %s changed its nonce", l.id)
		}
		l.nonce, l.leased = got.Nonce, time.Now().Add(time.Duration(ttl)*time.Second)
	}
}

func (f *fuzzer) metadata(l *life) {
	no, header := f.refusal(l)
	allowed := []int{204}
	if no != 0 {
		allowed = []int{no}
	}
	key, value := fmt.Sprintf("k%d", f.r.IntN(3)), fmt.Sprint(f.r.IntN(100))
	path := web + "/" + l.id + "/metadata"
	next := maps.Clone(l.metadata)
	var code int
	switch f.r.IntN(4) {
	case 0:
		next[key] = value
		code, _ = f.want("POST", path+"/"+key, fmt.Sprintf(`{"value":%q}`, value), header, allowed...)
	case 1:
		delete(next, key)
		code, _ = f.want("DELETE", path+"/"+key, "", header, allowed...)
	case 2:
		delete(next, "born")
		next[key] = value
		code, _ = f.want("PATCH", path, fmt.Sprintf(`{"metadata":{%q:%q,"born":null},"machine_version":%q}`, key, value, l.version), header, allowed...)
	default:
		f.want("PUT", path, fmt.Sprintf(`{"metadata":{%q:"x"},"machine_version":"another"}`, key), header, append(allowed[:0:0], 412, 409)...)
	}
	if code == 204 {
		l.metadata = next
	}
}

// update gives a new config, with the right version, none, or a wrong one.
func (f *fuzzer) update(l *life) {
	no, header := f.refusal(l)
	allowed := []int{200}
	f.made++
	body := fmt.Sprintf(`{"config":%s,"skip_launch":%v}`, f.config(f.r.IntN(2) == 0), f.r.IntN(3) == 0)
	switch f.r.IntN(4) {
	case 0:
		body = body[:len(body)-1] + fmt.Sprintf(`,"current_version":%q}`, l.version)
	case 1:
		body = body[:len(body)-1] + `,"current_version":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}`
		allowed = []int{412}
	}
	if no != 0 {
		allowed = []int{no, 412}
	}
	code, b := f.want("POST", web+"/"+l.id, body, header, allowed...)
	if code != 200 {
		return
	}
	var m api.Machine
	if err := json.Unmarshal(b, &m); err != nil || m.Version == l.version || m.ID != l.id {
		f.t.Errorf("after an update machine %s has version %s, before it had %s (%v)", l.id, m.Version, l.version, err)
	}
	l.version, l.metadata = m.Version, map[string]string{"born": fmt.Sprint(f.made)}
	switch {
	case strings.Contains(body, `"skip_launch":true`):
		l.state = "stopped"
	case l.awake():
	default:
		l.state = "" // asleep: with a config of another version a suspended one is stopped
	}
	f.calm(l)
}

func (f *fuzzer) destroy(l *life) {
	no, header := f.refusal(l)
	force := f.r.IntN(2) == 0
	allowed := []int{200}
	switch {
	case l.state == "destroyed":
		allowed = []int{404, 412}
	case no != 0:
		allowed = []int{no, 412}
	case l.awake() && !force:
		allowed = []int{412}
	}
	q := ""
	if force {
		q = []string{"?force=true", "?kill=true"}[f.r.IntN(2)]
	}
	if code, _ := f.want("DELETE", web+"/"+l.id+q, "", header, allowed...); code == 200 {
		l.state = "destroyed"
		f.calm(l)
	}
}

func (f *fuzzer) cordon(l *life) {
	no, header := f.refusal(l)
	allowed := []int{200}
	if no != 0 {
		allowed = []int{no}
	}
	on := f.r.IntN(2) == 0
	what := map[bool]string{true: "cordon", false: "uncordon"}[on]
	if code, _ := f.want("POST", web+"/"+l.id+"/"+what, "", header, allowed...); code == 200 {
		l.cordoned = on
	}
}

func (f *fuzzer) wait(l *life) {
	state := []string{"started", "stopped", "suspended", "destroyed", "failed", "settled", "nonsense"}[f.r.IntN(7)]
	allowed := []int{408}
	switch state {
	case l.state, "settled":
		allowed = []int{200}
	case "nonsense":
		allowed = []int{400}
	}
	if l.state == "destroyed" && state != "destroyed" {
		allowed = append(allowed, 412, 404) // it will never come
	}
	f.want("GET", fmt.Sprintf("%s/%s/wait?state=%s&timeout=%d", web, l.id, state, 1+f.r.IntN(3)), "", nil, allowed...)
	f.want("GET", web+"/"+l.id+"/wait?timeout="+[]string{"-1", "100000", "x"}[f.r.IntN(3)], "", nil, 400)
}

func (f *fuzzer) exec(l *life) {
	allowed := []int{412}
	if l.awake() {
		allowed = []int{200}
	}
	body := []string{`{"command":["echo","hi"]}`, `{"cmd":"echo hi"}`, `{"command":["echo"],"stream":true}`}[f.r.IntN(3)]
	f.want("POST", web+"/"+l.id+"/exec", body, nil, append(allowed, 409)...)
	f.want("POST", web+"/"+l.id+"/exec", `{"command":[]}`, nil, 400, 412, 409)
}

// nonsense asks what nobody means. Nothing may change, and nothing may fail inside.
func (f *fuzzer) nonsense(l *life) {
	method := []string{"GET", "POST", "PUT", "PATCH", "DELETE"}[f.r.IntN(5)]
	path := []string{
		"/v1/apps/none", "/v1/apps/web/machines/" + strings.Repeat("0", 14), "/v1/apps/none/machines/" + l.id, "/v1/apps/%00", "/v1/apps/web/machines/..%2f..",
		"/v1/nothing", "/v1/apps/web/machines/" + l.id + "/nothing", "/v1/apps/web/releases/x", "/v1/blobs/x", "/v1/why/none",
	}[f.r.IntN(10)]
	body := []string{"", "{", "[]", "null", `"x"`, `{"config":null}`, `{"name":["x"]}`, strings.Repeat("[", 100_000)}[f.r.IntN(8)]
	if code, b := f.call(method, path, body, nil); code < 400 {
		f.t.Errorf("%s %s is granted: %d %s", method, path, code, b)
	}
}

// calm lets what was asked come about, which the model counts on.
func (f *fuzzer) calm(l *life) {
	time.Sleep(15 * time.Second)
	if l.state != "" {
		return
	}
	var m api.Machine
	_, b := f.call("GET", web+"/"+l.id, "", nil)
	if err := json.Unmarshal(b, &m); err != nil {
		f.t.Fatal(err)
	}
	if m.State != "stopped" && m.State != "suspended" && m.State != "started" {
		f.t.Errorf("machine %s is %s after an update", l.id, m.State)
	}
	l.state = m.State
}

// check compares every machine with the model.
func (f *fuzzer) check() {
	f.t.Helper()
	_, b := f.want("GET", web+"?include_deleted=true", "", nil, 200)
	var ms []api.Machine
	if err := json.Unmarshal(b, &ms); err != nil {
		f.t.Fatal(err)
	}
	if len(ms) != len(f.machines) {
		f.t.Errorf("%d machines are listed with the destroyed ones, want %d", len(ms), len(f.machines))
	}
	for _, m := range ms {
		l := f.machines[m.ID]
		if l == nil {
			f.t.Errorf("machine %s is one that nobody made", m.ID)
			continue
		}
		meta := m.Config.Metadata
		if meta == nil {
			meta = map[string]string{}
		}
		if m.State != l.state || m.Cordoned != l.cordoned || m.Version != l.version || m.InstanceID != l.version || m.Nonce != "" || m.HostStatus != "ok" {
			f.t.Errorf("machine %s is %s, cordoned %v, version %s, instance %s, nonce %q, host %s (%s); want %s, %v, %s",
				m.ID, m.State, m.Cordoned, m.Version, m.InstanceID, m.Nonce, m.HostStatus, m.Reason, l.state, l.cordoned, l.version)
		}
		if diff := cmp.Diff(l.metadata, meta); diff != "" {
			f.t.Errorf("metadata of machine %s (-want +got):\n%s", m.ID, diff)
		}
	}
	f.want("GET", web+"/"+f.order[0], "", nil, 200)
}

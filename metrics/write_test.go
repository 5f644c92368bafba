package metrics_test

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/metrics"
	"github.com/volant-edge/volant/volanttest/need"
)

func sample() *metrics.Sample {
	h := metrics.Histogram{Bounds: []float64{0.1, 1}, Counts: []uint64{1, 3}, Sum: 2.5, Count: 4}
	return &metrics.Sample{
		Node: "0a1b2c3d", Region: "ams",
		Own: &metrics.Own{Version: "1", MemoryMB: 1, Machines: 2, Live: &metrics.Live{Peers: 3, LagSeconds: 0.25, Resent: 7}},
		Apps: []metrics.App{{
			Name: "web",
			Traffic: &metrics.Traffic{
				Waiting: 1, Slots: 2, Served: 7, Ended: 5, Refused: map[string]uint64{"queue_full": 3}, BytesIn: 10, BytesOut: 20, Connect: h,
				HTTP: []metrics.Responses{{200, h}}, HandshakeErrors: map[string]uint64{"a.b\xff\"\n": 1}, Handshakes: map[string]metrics.Histogram{"TLSv1.3": h},
			},
			Machines: []metrics.Machine{
				{ID: "11111111111111", Exit: &volant.Exit{Code: 3, OOM: true}},
				{ID: "22222222222222", Up: true, Slots: 2, CPU: 1, Guest: &metrics.Guest{
					Memory: map[string]uint64{"mem_total": 512 << 20, "nonsense": 1}, Load: [3]float64{0.5, 0, 0},
					CPU:   map[string]map[string]uint64{"0": {"user": 5, "nonsense": 1}},
					Disks: map[string]map[string]uint64{"vda\xff{}": {"reads_completed": 1}}, Links: map[string]map[string]uint64{"eth0": {"recv_bytes": 9}},
					Files: map[string]uint64{"maximum": 1}, FileSystems: map[string]map[string]uint64{"/": {"blocks": 4}},
				}},
			},
		}},
	}
}

func text(t *testing.T, s *metrics.Sample) string {
	t.Helper()
	var b bytes.Buffer
	if err := metrics.Write(&b, s); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWriteHasTheSeriesThatDashboardsAskFor(t *testing.T) {
	got := text(t, sample())
	for _, want := range []string{
		`fly_app_concurrency{app="web",host="0a1b2c3d",region="ams"} 2`,
		`fly_edge_tcp_connects_count{app="web",host="0a1b2c3d",region="ams"} 7`,
		`fly_edge_data_out{app="web",host="0a1b2c3d",region="ams"} 20`,
		`fly_app_connect_time_seconds_bucket{app="web",host="0a1b2c3d",region="ams",le="1"} 3`,
		`fly_edge_http_responses_count{app="web",host="0a1b2c3d",region="ams",status="200"} 4`,
		`fly_instance_up{app="web",host="0a1b2c3d",instance="11111111111111",region="ams"} 0`,
		`fly_instance_exit_oom{app="web",host="0a1b2c3d",instance="11111111111111",region="ams"} 1`,
		`fly_instance_memory_mem_total{app="web",host="0a1b2c3d",instance="22222222222222",region="ams"} 5.36870912e+08`,
		`fly_instance_cpu{app="web",cpu_id="0",host="0a1b2c3d",instance="22222222222222",mode="user",region="ams"} 5`,
		`fly_instance_load_average{app="web",host="0a1b2c3d",instance="22222222222222",minutes="1",region="ams"} 0.5`,
		`fly_instance_net_recv_bytes{app="web",device="eth0",host="0a1b2c3d",instance="22222222222222",region="ams"} 9`,
		`volant_app_refused_total{app="web",host="0a1b2c3d",region="ams",rule="queue_full"} 3`,
		`volant_node_machines{host="0a1b2c3d",region="ams"} 2`,
		`volant_node_live_lag_seconds{host="0a1b2c3d",region="ams"} 0.25`,
		`volant_node_live_resent_total{host="0a1b2c3d",region="ams"} 7`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if strings.Contains(got, "nonsense") {
		t.Error("a name of the guest's own choice is shown")
	}
}

func TestAGuestWithoutEndIsBounded(t *testing.T) {
	s := sample()
	g := s.Apps[0].Machines[1].Guest
	for i := range 10_000 {
		g.Disks[strings.Repeat("x", i)] = map[string]uint64{"reads_completed": 1}
	}
	if n := len(text(t, s)); n > 64<<10 {
		t.Errorf("%d bytes of one guest", n)
	}
}

func TestLintFindsNothing(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(text(t, sample()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestPromtoolFindsNothing(t *testing.T) {
	need.Tool(t, "machine", "promtool")
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = strings.NewReader(text(t, sample()))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

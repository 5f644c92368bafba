package metrics

import (
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// ContentType is that of what Write writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Write writes a sample.
func Write(w io.Writer, s *Sample) error {
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(collector{s}); err != nil {
		return err
	}
	families, err := r.Gather()
	if err != nil {
		return err
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return err
		}
	}
	return nil
}

// collector puts one sample into metrics.
type collector struct{ s *Sample }

// Describe tells nothing: which series there are depends on the sample.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect is prometheus.Collector's.
func (c collector) Collect(to chan<- prometheus.Metric) {
	e := emitter{to: to, node: string(c.s.Node), region: string(c.s.Region), descs: map[string]*prometheus.Desc{}}
	for i := range c.s.Apps {
		a := &c.s.Apps[i]
		if a.Traffic != nil {
			e.traffic(a.Name, a.Traffic)
		}
		for j := range a.Machines {
			e.machine(a.Name, &a.Machines[j])
		}
	}
	if c.s.Own != nil {
		e.own(c.s.Own)
	}
}

// emitter sends the metrics of a sample.
type emitter struct {
	to           chan<- prometheus.Metric
	node, region string
	descs        map[string]*prometheus.Desc
}

// series is one family: its name, what it means, and the labels it has beside app, region and host.
type series struct {
	name, help string
	labels     string // separated by blanks
}

func (e *emitter) desc(f series, app bool) *prometheus.Desc {
	if d := e.descs[f.name]; d != nil {
		return d
	}
	labels := []string{"region", "host"}
	if app {
		labels = append(labels, "app")
	}
	d := prometheus.NewDesc(f.name, f.help, append(labels, strings.Fields(f.labels)...), nil)
	e.descs[f.name] = d
	return d
}

func (e *emitter) values(app string, labels []string) []string {
	out := []string{e.region, e.node}
	if app != "" {
		out = append(out, app)
	}
	for _, l := range labels {
		out = append(out, label(l))
	}
	return out
}

// label bounds what a guest or a client named.
func label(s string) string {
	if len(s) > 128 {
		s = s[:128]
	}
	return strings.ToValidUTF8(s, "?")
}

func (e *emitter) send(f series, kind prometheus.ValueType, app string, v float64, labels ...string) {
	e.to <- prometheus.MustNewConstMetric(e.desc(f, app != ""), kind, v, e.values(app, labels)...)
}

func (e *emitter) gauge(f series, app string, v float64, labels ...string) {
	e.send(f, prometheus.GaugeValue, app, v, labels...)
}

// count sends a counter: untyped under Fly's names, a counter under ours.
func (e *emitter) count(f series, app string, v float64, labels ...string) {
	kind := prometheus.UntypedValue
	if strings.HasSuffix(f.name, "_total") {
		kind = prometheus.CounterValue
	}
	e.send(f, kind, app, v, labels...)
}

func (e *emitter) histogram(f series, app string, h Histogram, labels ...string) {
	buckets := map[float64]uint64{}
	for i, bound := range h.Bounds[:min(len(h.Bounds), len(h.Counts))] {
		buckets[bound] = h.Counts[i]
	}
	e.to <- prometheus.MustNewConstHistogram(e.desc(f, true), h.Count, h.Sum, buckets, e.values(app, labels)...)
}

func (e *emitter) traffic(app string, t *Traffic) {
	e.gauge(appConcurrency, app, float64(t.Slots))
	e.gauge(appWaiting, app, float64(t.Waiting))
	for _, f := range []series{edgeConnects, appConnects} {
		e.count(f, app, float64(t.Served))
	}
	for _, f := range []series{edgeDisconnects, appDisconnects} {
		e.count(f, app, float64(t.Ended))
	}
	e.count(edgeIn, app, float64(t.BytesIn))
	e.count(edgeOut, app, float64(t.BytesOut))
	e.histogram(appConnectTime, app, t.Connect)
	for _, r := range slices.Sorted(maps.Keys(t.Refused)) {
		e.count(appRefused, app, float64(t.Refused[r]), r)
	}
	for _, h := range t.HTTP {
		status := strconv.Itoa(h.Status)
		for _, f := range []series{edgeResponses, appResponses} {
			e.count(f, app, float64(h.Time.Count), status)
		}
		for _, f := range []series{edgeResponseTime, appResponseTime} {
			e.histogram(f, app, h.Time, status)
		}
	}
	for _, n := range first(t.HandshakeErrors) {
		e.count(edgeHandshakeErrors, app, float64(t.HandshakeErrors[n]), n)
	}
	for _, v := range first(t.Handshakes) {
		e.histogram(edgeHandshakeTime, app, t.Handshakes[v], v)
	}
}

func (e *emitter) machine(app string, m *Machine) {
	id := string(m.ID)
	up := 0.0
	if m.Up {
		up = 1
	}
	e.gauge(instanceUp, app, up, id)
	e.gauge(instanceSlots, app, float64(m.Slots), id)
	e.count(instanceBoots, app, float64(m.Boots), id)
	if m.CPU > 0 {
		e.count(instanceCPUSeconds, app, m.CPU, id)
		e.count(instanceThrottled, app, m.Throttled, id)
	}
	if x := m.Exit; x != nil {
		oom := 0.0
		if x.OOM {
			oom = 1
		}
		e.gauge(instanceExitCode, app, float64(x.Code), id)
		e.gauge(instanceExitOOM, app, oom, id)
	}
	if m.Guest != nil {
		e.guest(app, id, m.Guest)
	}
}

// mostDevices bounds the devices of a guest that are shown.
const mostDevices = 32

// first are the first names in order.
func first[V any](m map[string]V) []string {
	names := slices.Sorted(maps.Keys(m))
	return names[:min(len(names), mostDevices)]
}

func (e *emitter) guest(app, id string, g *Guest) {
	e.counters("fly_instance_memory_", memoryNames, "", app, g.Memory, id)
	for i, minutes := range []string{"1", "5", "15"} {
		e.gauge(instanceLoad, app, g.Load[i], id, minutes)
	}
	for _, cpu := range first(g.CPU) {
		for _, mode := range cpuModes {
			if n, ok := g.CPU[cpu][mode]; ok {
				e.count(instanceCPU, app, float64(n), id, cpu, mode)
			}
		}
	}
	for _, d := range first(g.Disks) {
		e.counters("fly_instance_disk_", diskNames, "device", app, g.Disks[d], id, d)
	}
	for _, l := range first(g.Links) {
		e.counters("fly_instance_net_", linkNames, "device", app, g.Links[l], id, l)
	}
	e.counters("fly_instance_filefd_", fileNames, "", app, g.Files, id)
	for _, m := range first(g.FileSystems) {
		e.counters("fly_instance_filesystem_", fileSystemNames, "mount", app, g.FileSystems[m], id, m)
	}
}

// counters sends what a guest counts under the names of the list.
func (e *emitter) counters(prefix string, names map[string]string, extra, app string, c map[string]uint64, labels ...string) {
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if n, ok := c[name]; ok {
			e.send(series{prefix + name, names[name], "instance " + extra}, prometheus.UntypedValue, app, float64(n), labels...)
		}
	}
}

func (e *emitter) own(o *Own) {
	up := 0.0
	if o.ProxyUp {
		up = 1
	}
	e.gauge(nodeInfo, "", 1, o.Version)
	e.gauge(nodeMemory, "", float64(o.MemoryMB)*(1<<20))
	e.gauge(nodeMemoryFree, "", float64(o.MemoryFreeMB)*(1<<20))
	e.gauge(nodeMachines, "", float64(o.Machines))
	e.gauge(nodeAwake, "", float64(o.Awake))
	e.gauge(nodeProxyUp, "", up)
	e.gauge(nodeUptime, "", o.UptimeSeconds)
	e.gauge(nodeRevision, "", float64(o.Revision))
	if l := o.Live; l != nil {
		e.live(l)
	}
}

func (e *emitter) live(l *Live) {
	e.gauge(livePeers, "", float64(l.Peers))
	e.gauge(liveSilent, "", float64(l.Silent))
	e.gauge(liveFacts, "", float64(l.Facts))
	e.gauge(liveBehind, "", float64(l.Behind))
	e.gauge(liveLag, "", l.LagSeconds)
	e.count(liveSent, "", float64(l.Sent))
	e.count(liveReceived, "", float64(l.Received))
	e.count(liveResent, "", float64(l.Resent))
	e.count(liveRefused, "", float64(l.Refused))
	e.count(liveMismatches, "", float64(l.Mismatches))
}

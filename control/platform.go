package control

import (
	"cmp"
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// place is a region as people know it.
type place struct {
	name      string
	lat, long float64
	geo       string
}

// places are those of the codes that Fly's users know. What a code means is up to the operator, whose records come
// before them; others are shown without a place.
var places = map[volant.Region]place{
	"ams": {"Amsterdam, Netherlands", 52.31, 4.76, "europe"}, "arn": {"Stockholm, Sweden", 59.65, 17.92, "europe"},
	"bom": {"Mumbai, India", 19.09, 72.87, "asia_pacific"}, "cdg": {"Paris, France", 49.01, 2.55, "europe"},
	"dfw": {"Dallas, Texas (US)", 32.90, -97.04, "north_america"}, "ewr": {"Secaucus, NJ (US)", 40.69, -74.17, "north_america"},
	"fra": {"Frankfurt, Germany", 50.03, 8.57, "europe"}, "gru": {"Sao Paulo, Brazil", -23.43, -46.47, "south_america"},
	"iad": {"Ashburn, Virginia (US)", 38.95, -77.45, "north_america"}, "jnb": {"Johannesburg, South Africa", -26.14, 28.25, "africa"},
	"lax": {"Los Angeles, California (US)", 33.94, -118.41, "north_america"}, "lhr": {"London, United Kingdom", 51.47, -0.46, "europe"},
	"nrt": {"Tokyo, Japan", 35.76, 140.39, "asia_pacific"}, "ord": {"Chicago, Illinois (US)", 41.98, -87.90, "north_america"},
	"sin": {"Singapore, Singapore", 1.36, 103.99, "asia_pacific"}, "sjc": {"San Jose, California (US)", 37.36, -121.93, "north_america"},
	"syd": {"Sydney, Australia", -33.95, 151.18, "asia_pacific"}, "yyz": {"Toronto, Canada", 43.68, -79.63, "north_america"},
}

// guestOf reads a machine's size from the query.
func (c *call) guestOf() (volant.Guest, error) {
	g := volant.Guest{CPUKind: c.r.URL.Query().Get("cpu_kind")}
	var err error
	if g.CPUs, err = c.number("cpus", 0, 1, 64); err != nil {
		return g, err
	}
	if g.MemoryMB, err = c.number("memory_mb", 0, 1, 1<<20); err != nil {
		return g, err
	}
	return g, g.Check()
}

// listRegions are the regions that have a server, with the room that is left there.
func (s *Server) listRegions(w http.ResponseWriter, c *call) error {
	g, err := c.guestOf()
	if err != nil {
		return err
	}
	out := api.Regions{Nearest: string(s.Region), Regions: []api.Region{}}
	room, codes := s.Machines.Room(g), s.regions()
	if c.flag("all") {
		for p := range s.Catalog.Snapshot().Places() {
			codes = append(codes, volant.Region(p.ID))
		}
		slices.Sort(codes)
		codes = slices.Compact(codes)
	}
	for _, code := range codes {
		out.Regions = append(out.Regions, s.regionView(code, room[code]))
	}
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) regionView(code volant.Region, room int) api.Region {
	p := s.placeOf(code)
	return api.Region{Code: string(code), Name: p.name, Latitude: p.lat, Longitude: p.long, GeoRegion: p.geo, Capacity: room}
}

// placeOf is what operators know of a region, or what is known of its code.
func (s *Server) placeOf(code volant.Region) place {
	p, known := places[code]
	if !known {
		p.name = string(code)
	}
	if own, ok := s.Catalog.Snapshot().Place(code); ok {
		p.name, p.lat, p.long = own.Name, own.Lat, own.Long
	}
	return p
}

// regions are those of the servers, in order.
func (s *Server) regions() []volant.Region {
	known := map[volant.Region]bool{}
	for _, n := range s.Catalog.Snapshot().Nodes() {
		if !n.Tombstone {
			known[n.Region] = true
		}
	}
	return slices.Sorted(maps.Keys(known))
}

// planPlacements says where as many machines of a size would go now. Nothing is reserved: who creates them asks
// again.
func (s *Server) planPlacements(w http.ResponseWriter, c *call) error {
	var in api.PlacementRequest
	if err := c.read(w, &in); err != nil {
		return err
	}
	org := volant.OrgID(in.Org)
	if in.Org == "" {
		return volant.Invalidf("org_slug is missing").WithRemedy("name the organization, such as %q", volant.OrgPersonal)
	}
	if !c.who.member(org) {
		return noOrg(in.Org)
	}
	if err := s.knownOrg(org); err != nil {
		return err
	}
	switch {
	case in.VolumeName != "" || in.VolumeSize != 0:
		return volant.Invalidf("volume_name and volume_size_bytes are not served").WithRemedy("leave them out: there are no volumes yet")
	case in.Count < 0 || in.Count > volant.MaxMachines:
		return volant.Invalidf("count is %d: use 0 to %d", in.Count, volant.MaxMachines)
	}
	if err := in.Compute.Check(); err != nil {
		return err
	}
	wanted, err := s.wantedRegions(in.Region)
	if err != nil {
		return err
	}
	placed, left := spread(wanted, s.Machines.Room(in.Compute), in.Count)
	if left > 0 {
		return volant.Errorf(volant.ErrNoCapacity, "%d of %d machines have no room in %v", left, in.Count, wanted).
			WithRemedy("ask for fewer or smaller machines, or name more regions")
	}
	reply(w, http.StatusOK, api.Placements{Regions: placed})
	return nil
}

// wantedRegions reads an expression such as "ams,any".
func (s *Server) wantedRegions(expr string) ([]volant.Region, error) {
	known := s.regions()
	var out []volant.Region
	add := func(r volant.Region) {
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	for word := range strings.SplitSeq(cmp.Or(expr, string(s.Region)+",any"), ",") {
		word = strings.TrimSpace(word)
		for _, r := range known { // a word without a server is passed over: the next one may have some
			if word == "any" || word == string(r) || word == places[r].geo {
				add(r)
			}
		}
	}
	if len(out) == 0 {
		return nil, volant.Errorf(volant.ErrNoCapacity, "none of %q has a server", cut(expr)).WithRemedy("use some of %v, or any", known)
	}
	return out, nil
}

// spread fills the regions in order, and says how many machines are left over. Of 0 machines it says how many
// there is room for.
func spread(regions []volant.Region, room map[volant.Region]int, count int) (out []api.Placement, left int) {
	out, left = []api.Placement{}, count
	for _, r := range regions {
		n := max(0, room[r])
		if count > 0 {
			n = min(n, left)
			left -= n
		}
		if n > 0 {
			out = append(out, api.Placement{Region: string(r), Count: n, Concurrency: n})
		}
	}
	return out, left
}

// orgMachines lists the machines of all apps of an organization that the caller sees, in the order of their last
// change, a part at a time.
func (s *Server) orgMachines(w http.ResponseWriter, c *call) error {
	org := volant.OrgID(c.r.PathValue("org"))
	if !c.who.member(org) {
		return noOrg(string(org))
	}
	if err := s.knownOrg(org); err != nil {
		return err
	}
	limit, err := c.number("limit", 500, 1, 1000)
	if err != nil {
		return err
	}
	after, id, err := c.place()
	if err != nil {
		return err
	}
	all := s.machinesOf(c, org)
	from, _ := slices.BinarySearchFunc(all, api.OrgMachine{UpdatedAt: after, ID: id}, byChange)
	for from < len(all) && all[from].UpdatedAt.Equal(after) && all[from].ID <= id {
		from++
	}
	all = all[from:]
	out := api.OrgMachines{Machines: all[:min(len(all), limit)], ErrorRegions: []string{}}
	if n := len(out.Machines); n > 0 {
		last := out.Machines[n-1]
		out.LastMachineID, out.LastUpdatedAt = last.ID, last.UpdatedAt.Format(time.RFC3339Nano)
		if n < len(all) {
			out.NextCursor = base64.RawURLEncoding.EncodeToString([]byte(out.LastUpdatedAt + " " + last.ID))
		}
	}
	reply(w, http.StatusOK, out)
	return nil
}

func byChange(a, b api.OrgMachine) int {
	return cmp.Or(a.UpdatedAt.Compare(b.UpdatedAt), cmp.Compare(a.ID, b.ID))
}

// place is where a list goes on: after a cursor, or after a time.
func (c *call) place() (after time.Time, id string, err error) {
	q := c.r.URL.Query()
	if cursor := q.Get("cursor"); cursor != "" {
		text, err := base64.RawURLEncoding.DecodeString(cursor)
		at, id, ok := strings.Cut(string(text), " ")
		after, terr := time.Parse(time.RFC3339Nano, at)
		if err != nil || terr != nil || !ok {
			return after, "", volant.Invalidf("cursor %q is none of ours", cut(cursor)).WithRemedy("send the next_cursor of the answer before")
		}
		return after, id, nil
	}
	after, err = parseTime("updated_after", q.Get("updated_after"))
	return after, "\xff", err // all at that very moment are left out
}

func (s *Server) machinesOf(c *call, org volant.OrgID) []api.OrgMachine {
	snap, f, summary := s.Catalog.Snapshot(), c.filter(), c.flag("summary")
	out := []api.OrgMachine{}
	for id, a := range snap.Apps() {
		if a.Org != org || !c.who.sees(a) || a.Tombstone && !f.deleted {
			continue
		}
		for _, m := range snap.Machines(id) {
			if have, _ := snap.Have(volant.MachineID(m.ID)); f.takes(m, machineState(m, have)) {
				out = append(out, orgMachine(a, m, have, summary))
			}
		}
	}
	slices.SortFunc(out, byChange)
	return out
}

func orgMachine(a *volant.App, m *volant.Machine, have volant.Have, summary bool) api.OrgMachine {
	v := api.OrgMachine{
		ID: m.ID, Name: m.Name, AppName: a.Name, State: string(machineState(m, have)), Region: string(m.Region),
		InstanceID: m.Version, Version: m.Version, CreatedAt: m.Created, UpdatedAt: m.Updated,
	}
	if have.Since.After(m.Updated) { // its state is news as well
		v.UpdatedAt = have.Since.UTC()
	}
	if have.PrivateIP.IsValid() {
		v.PrivateIP = have.PrivateIP.String()
	}
	if !summary {
		v.Config = &api.OrgMachineConfig{Image: m.Config.Image, Guest: m.Config.Guest, Metadata: m.Config.Metadata}
	}
	return v
}
